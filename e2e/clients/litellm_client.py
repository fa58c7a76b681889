"""LiteLLM: one interface over many servers. It decides by an error's words what to do next."""

import os

# Its table of prices comes with the package; without this it is fetched from the internet first.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from check import ANSWER, BASE, KEY, MODEL, QUESTION, TOO_LONG, check, done, equal

litellm.suppress_debug_info = True


def ask(messages=QUESTION, **fields):
    return litellm.completion(
        model=f"openai/{MODEL}", api_base=BASE, api_key=KEY, messages=messages,
        temperature=0, max_tokens=16, num_retries=0, **fields,
    )


whole = ask()
equal(whole.choices[0].message.content, ANSWER, "whole answer")
check(whole.usage.completion_tokens > 0, "usage")

text = "".join(event.choices[0].delta.content or "" for event in ask(stream=True))
equal(text, ANSWER, "streamed answer")

# What it gives back holds fields of its own; agents send them back.
again = ask([*QUESTION, whole.choices[0].message.model_dump(), {"role": "user", "content": "And of Italy?"}])
check(again.choices[0].message.content, "an answer after an answer sent back")
cached = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"], "cache_control": {"type": "ephemeral"}}]}]
equal(ask(cached).choices[0].message.content, ANSWER, "with cache_control")

try:
    ask([{"role": "user", "content": TOO_LONG}])
    check(False, "a prompt that is too long was answered")
except litellm.ContextWindowExceededError as err:
    check("maximum context length is" in str(err), str(err))

try:
    litellm.completion(model="openai/none", api_base=BASE, api_key=KEY, messages=QUESTION, num_retries=0)
    check(False, "an unknown model answered")
except litellm.NotFoundError:
    check(True, "")

completed = litellm.text_completion(
    model=f"text-completion-openai/{MODEL}", api_base=BASE, api_key=KEY, prompt="The capital of France is",
    max_tokens=4, temperature=0,
)
check("Paris" in completed.choices[0].text, completed.choices[0].text)
done()
