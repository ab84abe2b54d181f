"""A service as FlexServe's paper describes it (Verenich et al. 2020).

One Flask application under gunicorn, all models in one process, one transformation for all of them,
any number of images in a request under the name ``file``; the answer is ``{model: [label, ...]}``.
"""

from __future__ import annotations

from flask import Flask, jsonify, request
from flask.wrappers import Response

from benchmarks.peers.members import Members

application = Flask(__name__)
members = Members()


@application.post("/predict")
def predict() -> Response:
    """Labels of every model for every image."""
    return jsonify(members.answer([file.read() for file in request.files.getlist("file")]))
