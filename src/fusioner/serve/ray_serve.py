"""The page and the API as a Ray Serve application: `serve run fusioner.serve.ray_serve:app`, or KubeRay's RayService.

Needs `ray[serve]`. FUSIONER_MODEL names a model file, FUSIONER_API_KEY a key. Every replica has its own model and its
own uploaded images: with several replicas, send the image in every request instead of the id of an uploaded one.
"""

import os

from fastapi import FastAPI
from ray import serve

from fusioner.loading import load
from fusioner.serve.app import create_app
from fusioner.serve.security import Access


def build() -> FastAPI:
    """Create the application of one replica, in the replica's process."""
    access = Access(os.environ.get("FUSIONER_API_KEY"), host="0.0.0.0")
    return create_app(lambda: load(os.environ.get("FUSIONER_MODEL")), access=access)


@serve.deployment
@serve.ingress(build)
class Fusioner:
    """One replica."""


app = Fusioner.bind()  # pyright: ignore[reportFunctionMemberAccess]
