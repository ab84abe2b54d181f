"""A service as FlexServe's paper describes it (Verenich et al. 2020), for comparison.

One Flask application under gunicorn, all models in one process, one transformation for all of them,
any number of images in a request under the name ``file``; the answer is ``{model: [label, ...]}``.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch
from flask import Flask, jsonify, request
from flask.wrappers import Response
from PIL import Image

from benchmarks.ensembles import MEMBERS, module, transform

folder = Path(os.environ["BENCHMARK_FOLDER"])
application = Flask(__name__)
models = {name: module(name, folder) for name in MEMBERS}
preprocess = transform()


@application.post("/predict")
def predict() -> Response:
    """Labels of every model for every image."""
    files = request.files.getlist("file")
    batch = torch.stack(
        [preprocess(Image.open(io.BytesIO(f.read())).convert("RGB")) for f in files]
    )
    with torch.inference_mode():
        answers = {name: model(batch).argmax(dim=1).tolist() for name, model in models.items()}
    return jsonify({name: [str(label) for label in labels] for name, labels in answers.items()})
