"""Test the API's schema: its examples are valid, and generated requests cause no server error."""

from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from .conftest import Running

POSTS = ("/v1/segment", "/v1/images", "/v1/images/{id}/segment")


@pytest.fixture(scope="module")
def described(server: Running) -> dict[str, Any]:
    return server.http.get("/openapi.json").json()


def check(described: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema_rs.validator_for(schema | {"components": described["components"]}).validate(value)


def test_examples_of_requests_work(server: Running, described: dict[str, Any]) -> None:
    stored = ""
    for path in ("/v1/images", "/v1/images/{id}/segment", "/v1/segment"):
        operation = described["paths"][path]["post"]
        media = operation["requestBody"]["content"]["application/json"]
        check(described, media["schema"], media["example"])
        answer = server.http.post(path.format(id=stored), json=media["example"])
        assert answer.is_success, answer.text
        schema = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        check(described, schema, answer.json())
        stored = answer.json().get("id", stored)


def test_examples_of_answers_are_valid(described: dict[str, Any]) -> None:
    examples = 0
    for schema in described["components"]["schemas"].values():
        for part in (schema, *schema.get("properties", {}).values()):
            for example in part.get("examples", ()):
                check(described, part, example)
                examples += 1
    assert examples


def test_every_error_is_described(described: dict[str, Any]) -> None:
    for path in POSTS:
        answers = described["paths"][path]["post"]["responses"]
        assert {"400", "401", "403", "413", "415", "422", "429", "503"} <= set(answers)
        for status in answers.keys() - {"200", "201"}:
            schema = answers[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}


def test_the_schema_describes_the_key(start_server: Callable[..., Running]) -> None:
    described = start_server(key="secret").http.get("/openapi.json").json()
    assert all("security" in described["paths"][path]["post"] for path in POSTS)


ANY_HEALTH: Any = list(HealthCheck)


@pytest.fixture(scope="module")
def openapi(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.address}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", POSTS)
def test_schemathesis_finds_no_server_error(
    server: Running, photo: bytes, openapi: Any, path: str, mode: GenerationMode
) -> None:
    """Send valid and invalid requests; every response must match the description."""
    stored = server.http.post("/v1/images", files={"image": photo}).json()["id"]

    @settings(max_examples=25, suppress_health_check=ANY_HEALTH)
    @given(case=openapi[path]["post"].as_strategy(generation_mode=mode), known=st.booleans())
    def check(case: Any, known: bool) -> None:
        if known and case.path_parameters:
            case.path_parameters["id"] = stored
        # A schema cannot express that bytes are an image or labels are words; in a form all values are text.
        form = case.media_type == "multipart/form-data"
        excluded = [positive_data_acceptance, *([negative_data_rejection] if form else [])]
        case.call_and_validate(excluded_checks=excluded, timeout=30)

    check()


@pytest.mark.parametrize(("path", "method"), [("/v1/images/{id}", "delete"), ("/v1/progress/{id}", "get")])
def test_any_id_is_answered(openapi: Any, path: str, method: str) -> None:
    @settings(max_examples=20, suppress_health_check=ANY_HEALTH)
    @given(case=openapi[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Any) -> None:
        case.call_and_validate(timeout=30)

    check()
