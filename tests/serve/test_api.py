"""Every route of the API, over TCP, on the toy model."""

import base64


def test_segment_by_form(server, photo) -> None:
    answer = server.http.post("/v1/segment", files={"image": ("cat.jpg", photo)}, data={"labels": "cat, sofa"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["width"], told["height"], told["labels"], told["image"]) == (451, 300, ["cat", "sofa"], "cat.jpg")


def test_images(server, photo) -> None:
    answer = server.http.post("/v1/images", json={"image": base64.b64encode(photo).decode()})
    assert answer.status_code == 201, answer.text
    kept = answer.json()
    assert kept == {"id": kept["id"], "width": 451, "height": 300, "name": "image"}
    for kind in server.http.get("/v1/models").json()["models"][0]["formats"]:
        answer = server.http.post(f"/v1/images/{kept['id']}/segment", json={"labels": "cat", "format": kind})
        assert answer.status_code == 200, (kind, answer.text)
    assert server.http.delete(f"/v1/images/{kept['id']}").status_code == 204
    assert server.http.delete(f"/v1/images/{kept['id']}").status_code == 404
