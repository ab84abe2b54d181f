"""A service as FlexServe's paper describes it (Verenich et al. 2020).

It is one Flask application under gunicorn. All models run in one process and share one
transformation. A request has any number of images under the name ``file``, and the answer is
``{model: [label, ...]}``.
"""

from __future__ import annotations

from flask import Flask, jsonify, request
from flask.wrappers import Response

from benchmarks.peers.members import Members

application = Flask(__name__)
members = Members()


@application.post("/predict")
def predict() -> Response:
    """Answer with the labels of every model for every image."""
    return jsonify(members.answer([file.read() for file in request.files.getlist("file")]))
