"""What independent implementations make of texts and templates.

Standard input: one JSON object, standard output: the answers as a JSON list.
{"tokenizer": a tokenizer.json as text, "texts": [...]}   token ids by PyPI tokenizers
{"templates": [{"source", "variables", "tools"}...]}       Jinja2, set up as Hugging Face transformers does;
                                                           tools as text, since the order of its keys counts
"""
import datetime
import json
import sys


def tokens(request):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(request["tokenizer"])
    return [tokenizer.encode(text).ids for text in request["texts"]]


def environment():
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what a model is trained on; its body is printed as it is."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    now = datetime.datetime(2026, 11, 29, 12, 34, 56)
    env.globals["strftime_now"] = now.strftime
    return env


def templates(request):
    import jinja2

    env = environment()
    out = []
    for template in request["templates"]:
        try:
            variables = template["variables"] | {"tools": json.loads(template["tools"])}
            out.append(env.from_string(template["source"]).render(**variables))
        except jinja2.exceptions.TemplateError as error:
            out.append({"refused": str(error)})
    return out


request = json.load(sys.stdin)
json.dump(tokens(request) if "tokenizer" in request else templates(request), sys.stdout)
