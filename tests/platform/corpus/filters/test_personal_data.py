"""Personal data is masked, and text that only looks like it is not."""

import pytest

from cupola_platform.corpus.config import PersonalDataConfig
from cupola_platform.corpus.core.documents import Document, Edited, run_step
from cupola_platform.corpus.filters.personal_data import PersonalDataMask, mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+lists@mail.acme.co.uk.", "write to <email>."),
        ("<guido@python.org> wrote", "<<email>> wrote"),
        ("call +49 30 1234567 or +1 (415) 555-0132", "call <phone> or <phone>"),
        ("(415) 555-2671, 415-555-2671, 415.555.2671", "<phone>, <phone>, <phone>"),
        ("手机13812345678，座机010-62345678，电话：62345678", "手机<phone>，座机<phone>，电话：<phone>"),
        ("Tel.: 030 1234567, Fax (030) 765432", "Tel.: <phone>, Fax (<phone>"),
        ("from 93.184.216.34 and 2606:2800:220:1:248:1893:25c8:1946", "from <ip> and <ip>"),
        ("cards 4111 1111 1111 1111, 378282246310005, 3530111333300000", "cards <identity>, <identity>, <identity>"),
        ("DE89 3704 0044 0532 0130 00 or GB82WEST12345698765432", "<identity> or <identity>"),
        ("身份证号11010519491231002X。", "身份证号<identity>。"),
        ("CPF 529.982.247-25, SSN 219-09-9999", "CPF <identity>, SSN <identity>"),
    ],
)
def test_personal_data_is_masked(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        (
            "someone@example.com, user@localhost, git@github.com:owner/name, getty@tty1.service, logo@2x.png, "
            "@decorated.method"
        ),
        "version 120.45.99.31, HTML5 section 8.2.4.45, v1.22.333.4, 192.168.0.1, 10.20.30.40, 127.0.0.1, 300.1.2.3",
        "std::string a::b 12:34:56:78:9a:bc 2001:db8::1 fe80::1 ::1 x[2000::3]",
        "4111 1111 1111 1112, 1234 5678 9012 3456, 9780306406157, 20261121142244, 3.14159265358979323846",
        "DE89 3704 0044 0532 0130 01, 11010519491231002X1, 110105194913310021, 529.982.247-26, 000-12-3456",
        "1699999999, 1699999999999, 2026-11-21, +0200, 0x7fffffff, pi = 3.1415926535, 1,234,567,890",
        "diff\n+12345678901\n-12345678901",
    ],
)
def test_versions_examples_and_wrong_checksums_stay(text: str) -> None:
    assert mask(text) == (text, {})


def test_in_programs_plain_digits_are_numbers() -> None:
    code = "rng = default_rng(4202165767276)\nbig = +2147483647\nn = 13812345678\nday = '+1980-02-29 01:02'"
    assert mask(code, code=True) == (code, {})
    assert mask("# call +49 30 1234567, card 4111 1111 1111 1111, me@mail.acme.com", code=True)[1] == {
        "phone": 1, "identity": 1, "email": 1,
    }  # fmt: skip


def test_only_the_configured_kinds_are_masked() -> None:
    text = "jane@acme.org from 93.184.216.34"
    assert mask(text, ["ip"]) == ("jane@acme.org from <ip>", {"ip": 1})


def test_the_step_counts_what_it_masked_and_shows_no_examples() -> None:
    texts = ["jane@acme.org, joe@acme.org and 93.184.216.34", "nothing", "card 4111 1111 1111 1111"]
    documents = [Document("s", f"{i}.txt", 0, text, len(text.encode())) for i, text in enumerate(texts)]
    kept, _, tally = run_step(PersonalDataMask(PersonalDataConfig()), documents)
    assert [document.text for document in kept] == ["<email>, <email> and <ip>", "nothing", "card <identity>"]
    assert kept[0].size == len(kept[0].text)
    assert {kind: (edit.documents, edit.count) for kind, edit in tally.edits.items()} == {
        "email": (1, 2), "ip": (1, 1), "identity": (1, 1),
    }  # fmt: skip
    assert tally.edits["email"].examples == [("0.txt", "")]
    assert (tally.documents_in, tally.documents_out, tally.changed) == (3, 3, 2)
    assert tally.bytes_out == sum(document.size for document in kept)


def test_edits_without_a_changed_text_are_an_error() -> None:
    document = Document("s", "a.txt", 0, "text", 4)

    class Liar:
        name = "liar"

        def __call__(self, documents: object) -> list[Edited]:
            return [Edited(document, {"email": 1})]

    with pytest.raises(AssertionError, match="liar: 0 documents changed"):
        run_step(Liar(), [document])
