"""Writes the result of a request as the body of its response.

Enters: the result of one request (`decisions`) and the response format that its client wants.
Leaves: a body with its status and headers.
Must not import: `stages`, `running`, `service`, `deployment`, `entry`, `engine`, `members`. An
answer is written from a result alone; no scores are computed here.

`writing` chooses the format. Each format has a module: `json_answers`, `json_lines`, `flexserve`,
`tensors` and `open_inference`. They share `label_rows`, `columns`, `answer_size` and `encoding`.
"""
