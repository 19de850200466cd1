"""The `openai` Python SDK against the real mesh with the real model: what a user's program would do."""

from collections.abc import Iterator

import openai
import pytest

from tests.support.running import RunningMesh

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with RunningMesh(api_key="secret-key") as running:
        yield running


@pytest.fixture
def client(mesh: RunningMesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=mesh.url + "/v1", api_key="secret-key", max_retries=0, timeout=60) as sdk:
        yield sdk


def test_chat_streams(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        max_tokens=24,
    )
    pieces, usage, finish = [], None, None
    for event in stream:
        if event.choices:
            pieces.append(event.choices[0].delta.content or "")
            finish = event.choices[0].finish_reason or finish
        usage = event.usage or usage
    assert len(pieces) > 3 and "Paris" in "".join(pieces)
    assert finish in ("stop", "length")
    assert usage is not None and usage.prompt_tokens > 10 and 3 < usage.completion_tokens <= 24


def test_streamed_and_whole_answers_agree(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    wanted = client.completions.create(model=model, prompt="Once upon a time", max_tokens=20, temperature=0)
    stream = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=20, temperature=0, stream=True
    )
    assert "".join(event.choices[0].text for event in stream) == wanted.choices[0].text
    assert wanted.usage is not None and wanted.usage.completion_tokens == 20
    assert wanted.choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    text = client.completions.create(model=model, prompt="1, 2, 3, 4, 5,", max_tokens=30, temperature=0).choices[0].text
    assert "8" in text
    cut = client.completions.create(model=model, prompt="1, 2, 3, 4, 5,", max_tokens=30, temperature=0, stop=["8"])
    assert cut.choices[0].text == text[: text.index("8")] and cut.choices[0].finish_reason == "stop"


def test_a_client_that_leaves_frees_its_request(mesh: RunningMesh, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=mesh_model(client), prompt="Count:", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    mesh.settle(timeout_s=3.0)


def test_bad_requests_name_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model=mesh_model(client), prompt="x", max_tokens=0)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="x")
    with (
        openai.OpenAI(base_url=str(client.base_url), api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def mesh_model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id
