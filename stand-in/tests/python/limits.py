"""More calls than a minute takes: the client waits as it is told, and gets every answer."""

from openai import OpenAI, RateLimitError

strict = OpenAI(max_retries=0)
patient = OpenAI(max_retries=20)
refused = None
for number in range(6):
    try:
        strict.embeddings.create(model="e", input=f"text {number}")
    except RateLimitError as error:
        refused = error
assert refused is not None
assert refused.code == "rate_limit_exceeded", refused
headers = refused.response.headers
assert headers["x-ratelimit-limit-requests"] == "5", headers
assert headers["x-ratelimit-remaining-requests"] == "0", headers
assert int(headers["retry-after"]) > 0
for number in range(3):
    patient.chat.completions.create(
        model="m", messages=[{"role": "user", "content": f"text {number}"}]
    )
