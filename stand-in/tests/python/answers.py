"""Every kind of answer, read by the openai client."""

import json

from openai import BadRequestError, OpenAI

client = OpenAI(max_retries=0)
SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"type": "string", "enum": ["good", "bad"]},
        "score": {"type": "number"},
    },
    "required": ["mood", "score"],
    "additionalProperties": False,
}

plain = client.chat.completions.create(
    model="m", messages=[{"role": "user", "content": "Hello"}]
)
assert plain.choices[0].message.content == "On: Hello", plain
assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens

formatted = client.chat.completions.create(
    model="m",
    messages=[{"role": "user", "content": "Hello"}],
    response_format={
        "type": "json_schema",
        "json_schema": {"name": "mood", "strict": True, "schema": SCHEMA},
    },
)
assert json.loads(formatted.choices[0].message.content)["mood"] in ("good", "bad")

pieces = client.chat.completions.create(
    model="m",
    messages=[{"role": "user", "content": "a long text " * 10}],
    stream=True,
    stream_options={"include_usage": True},
)
text, usage = "", None
for piece in pieces:
    text += "".join(choice.delta.content or "" for choice in piece.choices)
    usage = piece.usage or usage
assert text.startswith("On: a long text"), text
assert usage.total_tokens > 0

response = client.responses.create(model="m", instructions="Be brief.", input="Hello")
assert response.output_text == "On: Hello", response
assert response.usage.total_tokens > 0

formatted = client.responses.create(
    model="m",
    input="Hello",
    text={"format": {"type": "json_schema", "name": "mood", "schema": SCHEMA, "strict": True}},
)
assert "score" in json.loads(formatted.output_text)

kinds, text = [], ""
for event in client.responses.create(model="m", input="Hello", stream=True):
    kinds.append(event.type)
    if event.type == "response.output_text.delta":
        text += event.delta
assert (kinds[0], kinds[-1]) == ("response.created", "response.completed"), kinds
assert text == "On: Hello"

for encoding in ({}, {"encoding_format": "float"}):
    vectors = client.embeddings.create(model="e", input=["one", "two"], **encoding)
    assert [entry.index for entry in vectors.data] == [0, 1]
    assert all(len(entry.embedding) == 8 for entry in vectors.data)
    assert vectors.data[0].embedding != vectors.data[1].embedding

with client.chat.completions.with_streaming_response.create(
    model="m", messages=[{"role": "user", "content": "Hello"}]
) as raw:
    assert raw.status_code == 200

try:
    client.embeddings.create(model="e", input=[])
except BadRequestError as error:
    assert error.code == "invalid_value", error
else:
    raise AssertionError("no input was answered")
