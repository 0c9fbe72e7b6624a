"""The grammar of templates with virtual tokens."""

from __future__ import annotations

import pytest

from tunecli.config.peft import PTuningConfig
from tunecli.config.template import Field, Piece, Template, Virtual, Words, parse_template


def written(template: Template) -> str:
    """The template without its virtual tokens."""
    parts = {Words: lambda piece: piece.text, Field: lambda piece: f"{{{piece.name}}}", Virtual: lambda piece: ""}
    return "".join(parts[type(piece)](piece) for piece in template.pieces)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (
            "{v3} {text} It was {v2} {label}",
            [Virtual(0, 3), Field("text"), Words(" It was"), Virtual(3, 2), Words(" "), Field("label")],
        ),
        ("{v20} {prompt} {completion}", [Virtual(0, 20), Field("prompt"), Words(" "), Field("completion")]),
        ("{text}{v2}{label}", [Field("text"), Virtual(0, 2), Field("label")]),
        ("{v1}{v2}{text} {label}", [Virtual(0, 1), Virtual(1, 2), Field("text"), Words(" "), Field("label")]),
        (
            "{v1}影评：{text}{v1}{label}",
            [Virtual(0, 1), Words("影评："), Field("text"), Virtual(1, 1), Field("label")],
        ),
        ("{{{v1}}} {label}", [Words("{"), Virtual(0, 1), Words("} "), Field("label")]),
        (
            "{v1} {a} ? {v1} {mask} , {b}",
            [
                Virtual(0, 1),
                Field("a"),
                Words(" ?"),
                Virtual(1, 1),
                Words(" "),
                Field("mask"),
                Words(" , "),
                Field("b"),
            ],
        ),
    ],
)
def test_pieces(text: str, pieces: list[Piece]):
    assert list(parse_template(text).pieces) == pieces


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("{v3} {text} It was {v2} {label}", "{text} It was {label}"),
        ("{v3}{text} It was{v2} {label}", "{text} It was {label}"),
        ("  {text} {v1} {v1} {label}", "{text} {label}"),
        ("{v1}  Review: {v1} {text}\n{v1}\n{label}", "Review: {text}\n{label}"),
        ("{v1} {text} {v1} It {v1} was {v1} {label}", "{text} It was {label}"),
        ("{v1} {mask} {text} {v1} ", "{mask} {text}"),
        ("{text}\n\n{v1} {label}", "{text}\n\n{label}"),
    ],
)
def test_the_text_reads_as_without_virtual_tokens(text: str, plain: str):
    assert written(parse_template(text)) == plain


def test_virtual_tokens_stand_before_the_white_space_of_the_word_that_follows():
    """So that it has the token that it has everywhere, which begins with a space in most vocabularies."""
    pieces = parse_template("{v1} {a} {v2} was {v3} {label}").pieces
    for piece, after in zip(pieces, pieces[1:], strict=False):
        assert not (isinstance(after, Virtual) and isinstance(piece, Words) and piece.text != piece.text.rstrip())


def test_what_it_says_of_itself():
    template = parse_template("{v3} {premise} ? {v2} {mask} , {hypothesis} {v1}")
    assert template.num_virtual_tokens == 6
    assert template.has_mask
    assert template.fields == template.columns == ["premise", "hypothesis"]
    around = parse_template(PTuningConfig().template)
    assert (around.columns, around.fields, around.has_mask) == ([], ["prompt", "completion"], False)
    assert around.num_virtual_tokens == 20


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{v3} {text", "is no template"),
        ("{v3} text} {label}", "is no template"),
        ("{v3} {} {label}", "braces hold a name"),
        ("{v3} {text!r} {label}", "braces hold a name"),
        ("{v3} {text:>3} {label}", "braces hold a name"),
        ("{text} {label}", "has no virtual tokens: {v20} is twenty"),
        ("{v0} {text} {label}", "has no virtual tokens"),
        ("", "has no virtual tokens"),
        ("{v3} {text} {text} {label}", r"has \{text\} twice"),
        ("{v3} {mask} {text} {mask}", r"has \{mask\} twice"),
        ("{v3} {text}", r"needs one of \{label\}, \{completion\} and \{mask\}"),
        ("{v3} {text} {mask} {label}", r"needs one of \{label\}, \{completion\} and \{mask\}"),
        ("{v3} {label} {text}", r"\{label\} comes last"),
        ("{v3} {text} {label}.", r"\{label\} comes last"),
        ("{v3} {text} {label} {v1}", r"\{label\} comes last"),
        ("{v3} {completion}", r"\{prompt\} and \{completion\} go together"),
        ("{v3} {prompt} {label}", r"\{prompt\} and \{completion\} go together"),
        ("{v3} {text} {prompt} {completion}", "there are no other fields"),
    ],
)
def test_what_is_wrong_with_it(text: str, what: str):
    with pytest.raises(ValueError, match=what):
        parse_template(text)
