import pytest

from dept.data_prep.embedded.clean import (
    Rules,
    clean,
    documents,
    has_placeholder,
    key,
    normalise,
    runs,
    strip_markup,
)

UI = Rules(min_chars=10, min_letters=0.7, script="LATIN", english=0.2, min_document_chars=0)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("  Two   spaces \t and\r\n\r\n a line ", "Two spaces and\na line"),
        ("Cafe\u0301", "Café"),
        ("soft\u00adhyphen, zero\u200bwidth, \x07bell\ufeff", "softhyphen, zerowidth, bell"),
        ("क्\u200dष", "क्\u200dष"),  # a joiner is spelling
    ],
)
def test_normalise(raw, wanted):
    assert normalise(raw) == wanted


@pytest.mark.parametrize(
    "code", [0x0, 0x1B, 0x7F, 0x9F, 0xAD, 0x200B, 0x2069, 0xE000, 0xFEFF, 0xFFFC]
)
def test_what_is_invisible_is_removed_from_any_line(code):
    for text in ("ab{}c", "zwei\nzéi{}len", "中{}文"):
        assert normalise(text.format(chr(code))) == text.format("")


def test_normalise_keeps_the_layout_of_code():
    assert normalise("def f():\n    return 1  \n\n\n\n", "keep") == "def f():\n    return 1"


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("Press **Submit** in `app`.", "Press Submit in app."),
        ("See the [manual]({url}) first.", "See the manual first."),
        ("Sets the topic. [Learn more.]({url}#x)", "Sets the topic. "),
        ("参阅【文档】({docs}) 。", "参阅文档 。"),
        ("<b>Bold</b> &amp; <a href='x'>linked</a>", "Bold & linked"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
    ],
)
def test_strip_markup(raw, wanted):
    assert strip_markup(raw) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "Hello {name}",
        "{count, plural, one {# file} other {# files}}",
        "Hello %s",
        "%(count)d files",
        "Hello ${name}",
        "Hello $name",
        "[%key:common::state%]",
        "at https://example.org/x",
        "write to me@example.org",
    ],
)
def test_placeholders_are_seen(text):
    assert has_placeholder(text)


@pytest.mark.parametrize("text", ["It costs $5 or 100%.", "Is 3 < 4?", "A & B", "50% sure"])
def test_ordinary_text_is_no_placeholder(text):
    assert not has_placeholder(text)


@pytest.mark.parametrize(
    "text",
    [
        "Aggiungi",  # short
        "192.168.1.1 - 10.0.0.1",  # no letters
        "Добавить устройство",  # another script
        "Please select the device that you want",  # not translated
        "Il dispositivo {name} è pronto",  # a placeholder
    ],
)
def test_a_passage_that_is_not_wanted_is_dropped(text):
    assert clean(text, UI) == ""
    assert clean("Seleziona il dispositivo da aggiungere", UI)


def test_japanese_counts_all_its_scripts():
    rules = Rules(script="CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA")
    assert clean("コンピューターを再起動", rules)
    assert not clean("Restart the computer", rules)


def test_key_ignores_case_digits_and_punctuation_and_nothing_else():
    assert key("Phase 1 - power!") == key("phase 22: Power")
    assert key("Phase 1 power") != key("Phase power")
    assert key("1 + 1") != key("1 - 1")
    assert key("की") != key("का")  # vowel signs are part of a word


def test_a_passage_occurs_once_in_all_documents():
    groups = [["Open the door.", "Close it now."], ["open the door!", "Wait for me."]]
    assert list(documents(groups, Rules(min_document_chars=0))) == [
        "Open the door.\nClose it now.",
        "Wait for me.",
    ]


def test_skipped_passages_are_compared_as_cleaned_ones():
    groups = [["Host name", "Nome dello host"]]
    assert list(documents(groups, Rules(), skip=["**Host** name"])) == ["Nome dello host"]


def test_near_duplicates_are_dropped_by_their_share_of_new_runs():
    first = "The software is provided as it is without a warranty of any kind"
    second = first + " at all"
    other = "You may copy and change the software as long as you keep this notice"
    rules = Rules(novelty=0.5, min_document_chars=0)
    assert list(documents([[first], [second], [other]], rules)) == [first, other]


def test_exact_comparison_keeps_arithmetic_apart():
    groups = [["What is 1 + 2?\n3", "What is 2 + 2?\n4", "What is 1 + 2?\n3"]]
    rules = Rules(exact=True, layout="keep", markup="keep")
    assert list(documents(groups, rules)) == ["What is 1 + 2?\n3\nWhat is 2 + 2?\n4"]


def test_documents_are_joined_and_cut_at_passages():
    groups = [[f"Sentence number {'x' * i}." for i in range(1, 9)], ["A short one."], ["The end."]]
    rules = Rules(min_document_chars=30, max_document_chars=60, separator="|")
    made = list(documents(groups, rules))
    assert "|".join(made) == "|".join(text for group in groups for text in group)
    assert max(map(len, made)) <= 60
    assert [len(text) < 30 for text in made] == [False] * (len(made) - 1) + [True]


def test_unknown_rules_are_refused_by_name():
    with pytest.raises(ValueError, match=r"clean\.min_char is not a cleaning rule; write one of"):
        Rules.of({"min_char": 3})
    with pytest.raises(ValueError, match=r"clean\.layout is 'code'; write one of: flow, keep"):
        Rules.of({"layout": "code"})


def test_runs_of_words():
    assert runs("One two three.", 2) == {"one two", "two three"}
    assert runs("中文字", 2) == {"中 文", "文 字"}
    assert runs("की का", 1) == {"की", "का"}
    assert runs("short", 5) == {"short"}
