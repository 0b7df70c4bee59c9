"""The quality rules in many languages, and compared with datatrove's."""

import random

import numpy as np
import pytest
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates, get_n_grams
from pydantic import ValidationError

from cupola_platform.corpus.config import QualityConfig
from cupola_platform.corpus.config.quality import RuleFamily
from cupola_platform.corpus.core.shingles import hashed_words
from cupola_platform.corpus.filters.language import identify
from cupola_platform.corpus.filters.quality import Text, broken, written_as
from cupola_platform.corpus.filters.repetition import repeated_characters, repeated_pieces, top_ngram

TEXTS = {
    "zh": "清晨点燃熔炉，到中午铁水已经熔化。\n炉渣清除以后，铸工打开出铁口，把铁水倒进模具里。\n大件铸件需要一整天才能冷却，"
    "之后要用刷子清理干净，再进行测量。\n好的铸工会把每一批炉料都仔细记录下来，以便日后查阅和比较。\n这样的记录在工厂里可以保存几十年。",
    "ja": "朝のうちに炉に火を入れ、昼までには鉄が溶ける。\n鉱滓を取り除いたあと、鋳物師は湯口を開けて鋳型に流し込む。\n"
    "大きな鋳物は冷えるまでに丸一日かかり、測る前にブラシできれいにしなければならない。\nよい鋳物師は、炉に入れたものをすべて帳面に書き残しておく。",
    "ko": "아침에 용광로에 불을 붙이면 정오까지 쇠가 녹는다. 슬래그를 걷어 낸 다음 주물공은 출탕구를 열고 거푸집을 채운다.\n"
    "큰 주물은 식는 데 하루가 걸리고, 누가 재기 전에 솔로 깨끗이 닦아야 한다. 좋은 주물공은 용광로에 넣은 모든 것을 기록해 둔다.\n"
    "그 기록은 나중에 같은 일을 할 때 쓸 수 있다. 그래서 공장에서는 이 장부를 아주 오래 보관하는 것이 보통이다.",
    "ru": "Утром в печи разжигают огонь, и к полудню железо уже расплавлено. Когда шлак снят, литейщик открывает лётку и наполняет формы.\n"
    "Большие отливки остывают целый день, и их чистят щёткой, прежде чем кто-нибудь их измерит.\n"
    "Хороший литейщик записывает каждую загрузку печи, чтобы потом можно было сравнить результаты с прежними и найти ошибку.",
    "de": "Der Ofen wird am Morgen angezündet, und bis zum Mittag ist das Eisen geschmolzen. Wenn die Schlacke abgezogen ist, öffnet "
    "der Gießer den Abstich und füllt die Formen.\nGroße Gussstücke brauchen einen ganzen Tag, um abzukühlen, und sie werden mit der "
    "Bürste gereinigt, bevor jemand sie misst. Ein guter Gießer schreibt jede Beschickung des Ofens auf.",
    "ar": "يُشعل الفرن في الصباح، ويذوب الحديد عند الظهر. وبعد إزالة الخبث يفتح السبّاك الفتحة ويملأ القوالب.\n"
    "تحتاج القطع الكبيرة إلى يوم كامل حتى تبرد، ثم تُنظف بالفرشاة قبل أن يقيسها أحد. هل يكفي ذلك؟\n"
    "السبّاك الجيد يسجل كل ما وضع في الفرن حتى يمكن أن تقارن النتائج في ما بعد مع ما كان من قبل، وهذا ما يفعله كل من يعمل هنا.",
    "th": "ตอนเช้าจะจุดไฟในเตาหลอม และเหล็กจะละลายในตอนเที่ยง เมื่อตักขี้ตะกรันออกแล้ว ช่างหล่อจะเปิดรูเทและเทเหล็กลงในแม่พิมพ์\n"
    "ชิ้นงานขนาดใหญ่ต้องใช้เวลาทั้งวันกว่าจะเย็นลง และต้องใช้แปรงทำความสะอาดก่อนที่จะวัดขนาด\n"
    "ช่างหล่อที่ดีจะจดบันทึกทุกสิ่งที่ใส่ลงในเตา เพื่อให้สามารถเปรียบเทียบผลที่ได้ในภายหลัง และบันทึกนี้จะเก็บไว้ในโรงงานเป็นเวลานานหลายปี",
}  # fmt: skip


def reasons(text: str, language: str, config: QualityConfig | None = None) -> list[str]:
    checked = Text(text, written_as(language), hashed_words([text]), 0)
    return [reason for reason, _ in broken(checked, config or QualityConfig(min_words=30))]


@pytest.mark.parametrize("language", TEXTS)
def test_good_text_of_any_language_passes(language: str) -> None:
    assert identify(TEXTS[language])[0] == language
    assert reasons(TEXTS[language], language) == []


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("zh", "好的。" * 10, "too few words"),
        ("zh", "\n".join(["首页", "关于我们", "联系方式", "产品中心", "新闻动态", "人才招聘"] * 1 + list("甲乙丙丁戊己庚辛壬癸") * 4), "lines without punctuation"),
        ("zh", TEXTS["zh"] + "欢迎选购我们的最新产品" * 20, "repeated phrase"),
        ("ja", TEXTS["ja"] + "ログインしてください" * 20, "repeated phrase"),
        ("ja", "\n".join([TEXTS["ja"]] * 3), "repeated lines"),
        ("zh", "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳午未申酉戌亥。" * 4, "few stop words"),
        ("zh", "\n".join(f"第{i}条新闻。" for i in range(60)), "short lines"),
        ("zh", "我们使用Cookie。uses cookies 和 privacy policy。\n" + "这是一个关于铸造的很长的句子,它在这里只是为了凑够字数而已。" * 5, "notices of a web site"),
        ("ru", "литейщик печь железо форма отливка щётка загрузка шлак огонь металл. " * 8, "few stop words"),
        ("ko", "공장 용광로 주물공 거푸집 출탕구 슬래그 기록 장부 쇠 불. " * 8, "few stop words"),
        ("de", "\n\n".join(["Alle Angaben sind ohne Gewähr und werden nicht geprüft."] * 3 + [TEXTS["de"]]), "repeated paragraphs"),
        ("en", "\n".join(f"function f{i}() {{ enable JavaScript to see the page }}" for i in range(20)), "notices of a web site"),
    ],
)  # fmt: skip
def test_poor_text_of_any_language_is_dropped_with_its_reason(language: str, text: str, reason: str) -> None:
    assert reason in reasons(text, language)


def test_short_chinese_identified_as_wu_gets_the_rules_of_chinese() -> None:
    assert reasons(TEXTS["zh"], "wuu") == []


def test_families_are_chosen_by_name_and_limits_by_language() -> None:
    notices = "\n".join(f"Please enable JavaScript to see page {i} of the shop." for i in range(20))
    assert "notices of a web site" in reasons(notices, "en")
    others: tuple[RuleFamily, ...] = ("gopher", "fineweb")
    assert reasons(notices, "en", QualityConfig(rules=others)) == []
    strict = QualityConfig(languages={"de": {"min_words": 500}, "zh": {"min_sentences": 30}})
    assert reasons(TEXTS["de"], "de", strict) == ["too few words"]
    assert reasons(TEXTS["zh"] * 2, "zh", strict)[0] == "few sentences"
    assert reasons(TEXTS["ru"], "ru", QualityConfig(min_words=30, max_curly_lines=0.0)) == []
    assert "curly brackets" in reasons(TEXTS["ru"] + "{}", "ru", QualityConfig(min_words=30, max_curly_lines=0.0))


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ({"zh": {"min_word": 5}}, "zh: there is no limit 'min_word'. Did you mean 'min_words'?"),
        ({"zh": {"max_bullet_lines": 2}}, "zh.max_bullet_lines=2.0: Input should be less than or equal to 1"),
    ],
)
def test_a_misspelt_or_impossible_limit_of_a_language_is_refused(
    languages: dict[str, dict[str, float]], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        QualityConfig(languages=languages)
    assert message in str(caught.value)


def words_of(seed: int, distinct: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [f"w{'x' * (i % 5)}{i}" for i in rng.choices(range(distinct), k=count)]


def test_repetition_is_measured_as_in_datatrove() -> None:
    for seed in range(20):
        words = words_of(seed, 12, 300)
        hashed = hashed_words([" ".join(words)])
        for n in (2, 3, 4):
            grams = get_n_grams(words, n)
            often, size, place = top_ngram(hashed.hashes, hashed.lengths, n)
            assert often == max(grams.count(gram) for gram in grams)
            assert size == len("".join(words[place : place + n]))
        assert repeated_pieces(words) == find_duplicates(words)
    for n in (
        5,
        8,
        10,
    ):  # a phrase repeated as a whole, since datatrove counts overlapping runs differently
        phrase = words_of(1, 10_000, 40)
        words = [*phrase, *words_of(2, 10_000, 60), *phrase, *words_of(3, 10_000, 60)]
        hashed = hashed_words([" ".join(words)])
        assert (
            repeated_characters(hashed.hashes, hashed.lengths, n)
            == find_all_duplicate(words, n)
            == len("".join(phrase))
        )


def test_an_empty_or_wordless_text_has_no_repetition() -> None:
    none = np.zeros(0, np.int64)
    assert top_ngram(none.astype(np.uint64), none, 3) == (0, 0, 0)
    assert repeated_characters(none.astype(np.uint64), none, 5) == 0
    assert reasons("🙂 🚀 " * 40, "en")[0] == "words without letters"
