"""Language-specific rules: how words are written, stop words, sentence ends."""

from collections.abc import Mapping

SAME_WRITING = {"wuu": "zh", "yue": "zh", "lzh": "zh", "gan": "zh", "hak": "zh", "nb": "no", "nn": "no"}
"""Languages written like another one; short Chinese text is often identified as Wu."""

CHARACTERS_PER_WORD = {"zh": 1.5, "ja": 2.0, "th": 4.5, "lo": 4.5, "km": 4.5, "my": 5.0, "bo": 3.0, "dz": 3.0}
"""Languages written without spaces, with their mean letters per word, from which words are estimated."""

TERMINALS = (
    ".", "!", "?", ":", "…", "。", "！", "？", "：", "．", "｡", "‼", "⁉",  # Latin, Cyrillic, Greek; Chinese, Japanese
    # Arabic, Urdu, Devanagari, Burmese, Khmer, Tibetan, Ethiopic, Armenian
    "؟", "۔", "।", "॥", "။", "។", "།", "።", "፧", "՞", "։",
)  # fmt: skip
CLOSERS = "\"'”’»›)]`」』）】》〉"
"""Characters that may follow the end of a sentence; a line that ends with one counts as complete."""

BULLETS = ("-", "*", "•", "‣", "▪", "+ ", "・", "●", "○", "■", "□", "◆", "◇", "※")

_WORDS = {
    "en": "the be to of and that have with a in is for",
    "de": "der die das und in den von zu mit ist nicht ein auf für",
    "fr": "de la le et les des en un une du est que pour dans",
    "es": "de la que el en y los del se las por un para con",
    "it": "di e il la che in un per è del non una con le", "pt": "de a o que e do da em um para com não uma os",
    "nl": "de van het een en in is dat op te met voor zijn niet", "pl": "w i na z się do nie jest to że o jak po od",
    "cs": "a v se na je že o s z do to i ve pro", "sk": "a v sa na je že o s z do to aj vo pre",
    "ru": "и в не на что с по как это из для к от а", "uk": "і в не на що з та до як це для від або у",
    "bg": "на и в от за да се с не е по че са към",
    "sr": "и у је на да се за од са не што као i u je na da se za od sa",
    "hr": "i u je na da se za od s ne što kao su ili", "sl": "in v je na da se za s z ne so ki kot ali",
    "sv": "och i att det som en på är av för med till den inte",
    "da": "og i at det er en til på som af for med den ikke",
    "no": "og i det at er en ei til på som av for med den ikke ikkje",
    "fi": "ja on ei että se oli joka kun tai myös ovat mutta niin voi",
    "hu": "a az és hogy nem is egy meg ez van de vagy csak",
    "ro": "de și în a la cu pe nu care este din un o să",
    "tr": "ve bir bu da de için ile olarak çok gibi daha olan en ne",
    "el": "και το της του η να την με ο σε που για είναι από",
    "id": "yang dan di dengan untuk dari ini itu dalam tidak pada adalah ke atau",
    "vi": "và của là có các được cho trong một không với người này những",
    "ca": "de la i el que en a per un les amb del una és",
    "ar": "في من على إلى أن هذا التي عن مع ما لا هذه كان أو", "fa": "و در به از که این را با است برای آن یک خود تا",
    "he": "של את על לא זה עם הוא כי גם או היא אל כל אם", "hi": "के का में की है और से को पर यह कि एक नहीं भी",
    "ko": "이 그 및 수 있다 있는 등 또는 할 것 때 하는 위해 대한",
}  # fmt: skip
_PIECES = {
    "zh": "的 是 在 了 不 和 有 一 为 以 与 这 中 可 為 與 這 個", "ja": "の は を に が て で と た し",
    "th": "ที่ และ ใน ของ การ เป็น ได้ มี ให้ ไม่",
}  # fmt: skip

STOP_WORDS: Mapping[str, frozenset[str]] = {language: frozenset(words.split()) for language, words in _WORDS.items()}
"""The most frequent stop words; a text without any is a list, a table or in another language."""

STOP_PIECES: Mapping[str, frozenset[str]] = {language: frozenset(of.split()) for language, of in _PIECES.items()}
"""The same for languages without spaces, matched anywhere in the text."""

LANGUAGE_RULES: Mapping[str, Mapping[str, float]] = {
    "zh": {"short_line_characters": 12, "min_stop_words": 1},
    "ja": {"short_line_characters": 12},
    "th": {"min_punctuated_lines": 0, "min_sentences": 0},
    "lo": {"min_punctuated_lines": 0, "min_sentences": 0},
    "ko": {"min_mean_word_length": 1.8, "short_line_characters": 15, "min_stop_words": 1},
    "vi": {"min_mean_word_length": 2.5},
    "fi": {"max_mean_word_length": 13, "min_stop_words": 1},
    "hu": {"max_mean_word_length": 12},
    "tr": {"max_mean_word_length": 12, "min_stop_words": 1},
    "de": {"max_mean_word_length": 12},
    **{
        key: {"min_stop_words": 1} for key in ("ru", "uk", "pl", "cs", "sk", "hr", "sr", "sl")
    },  # inflected languages need fewer
    "ml": {"max_mean_word_length": 16},
    "ta": {"max_mean_word_length": 16},
}
"""Overrides for languages in which a rule made for English would drop good text. A recipe's `quality.languages` takes
precedence."""
