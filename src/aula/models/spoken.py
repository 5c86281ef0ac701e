"""Text as it is said: units, formulas and symbols become words, in English and Chinese."""

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

# symbol: (English singular, English plural, Chinese)
_UNITS: dict[str, tuple[str, str, str]] = {
    "m": ("metre", "metres", "米"),
    "km": ("kilometre", "kilometres", "千米"),
    "dm": ("decimetre", "decimetres", "分米"),
    "cm": ("centimetre", "centimetres", "厘米"),
    "mm": ("millimetre", "millimetres", "毫米"),
    "μm": ("micrometre", "micrometres", "微米"),
    "nm": ("nanometre", "nanometres", "纳米"),
    "kg": ("kilogram", "kilograms", "千克"),
    "g": ("gram", "grams", "克"),
    "mg": ("milligram", "milligrams", "毫克"),
    "t": ("tonne", "tonnes", "吨"),
    "s": ("second", "seconds", "秒"),
    "ms": ("millisecond", "milliseconds", "毫秒"),
    "min": ("minute", "minutes", "分钟"),
    "h": ("hour", "hours", "小时"),
    "N": ("newton", "newtons", "牛顿"),
    "kN": ("kilonewton", "kilonewtons", "千牛"),
    "J": ("joule", "joules", "焦耳"),
    "kJ": ("kilojoule", "kilojoules", "千焦"),
    "MJ": ("megajoule", "megajoules", "兆焦"),
    "W": ("watt", "watts", "瓦特"),
    "kW": ("kilowatt", "kilowatts", "千瓦"),
    "MW": ("megawatt", "megawatts", "兆瓦"),
    "kWh": ("kilowatt hour", "kilowatt hours", "千瓦时"),
    "Pa": ("pascal", "pascals", "帕斯卡"),
    "kPa": ("kilopascal", "kilopascals", "千帕"),
    "Hz": ("hertz", "hertz", "赫兹"),
    "kHz": ("kilohertz", "kilohertz", "千赫"),
    "V": ("volt", "volts", "伏特"),
    "A": ("ampere", "amperes", "安培"),
    "Ω": ("ohm", "ohms", "欧姆"),
    "K": ("kelvin", "kelvins", "开尔文"),
    "L": ("litre", "litres", "升"),
    "mL": ("millilitre", "millilitres", "毫升"),
    "ml": ("millilitre", "millilitres", "毫升"),
    "rad": ("radian", "radians", "弧度"),
}
_LENGTHS = frozenset({"m", "km", "dm", "cm", "mm", "μm", "nm"})
_PLAIN_ALONE = frozenset({"km", "cm", "mm", "kg", "kN", "kJ", "kW", "kWh", "kPa", "kHz", "Hz"})
"""Units that are read as such without a number beside them; a lone "m" or "N" may be a variable."""

_SYMBOLS: dict[str, tuple[str, str]] = {
    "=": ("equals", "等于"),
    "×": ("times", "乘以"),
    "·": ("times", "乘以"),
    "*": ("times", "乘以"),
    "÷": ("divided by", "除以"),
    "/": ("over", "除以"),
    "+": ("plus", "加"),
    "−": ("minus", "减"),
    "negative": ("minus", "负"),
    "±": ("plus or minus", "正负"),
    "≈": ("is about", "约等于"),
    "≠": ("is not equal to", "不等于"),
    "≤": ("is at most", "小于等于"),
    "≥": ("is at least", "大于等于"),
    "<": ("is less than", "小于"),
    ">": ("is greater than", "大于"),
    "∝": ("is proportional to", "正比于"),
    "√": ("the square root of", "根号"),
    "∞": ("infinity", "无穷大"),
    "→": ("to", "到"),
    "½": ("one half", "二分之一"),
    "¼": ("one quarter", "四分之一"),
    "¾": ("three quarters", "四分之三"),
    "Σ": ("the sum of", "总和"),
    "Δ": ("delta", "德尔塔"),
    "α": ("alpha", "阿尔法"),
    "β": ("beta", "贝塔"),
    "γ": ("gamma", "伽马"),
    "θ": ("theta", "西塔"),
    "λ": ("lambda", "兰姆达"),
    "μ": ("mu", "缪"),
    "π": ("pi", "派"),
    "ρ": ("rho", "柔"),
    "σ": ("sigma", "西格玛"),
    "τ": ("tau", "涛"),
    "φ": ("phi", "斐"),
    "ω": ("omega", "欧米伽"),
}
_MATHS = "=×·÷±≈≠≤≥∝√−+"

_FUNCTIONS: dict[str, tuple[str, str]] = {
    "sin": ("sine", "正弦"),
    "cos": ("cosine", "余弦"),
    "tan": ("tangent", "正切"),
}
_SHORT_WORDS = frozenset({"the", "and", "for", "are", "is", "of", "to", "in", "or", "so", "not", "but", "if", "it"})

_LETTER = "[A-Za-zΑ-Ωα-ω]"
_ATOM = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_POWER = r"(?:\^-?[1-9]|⁻?[¹²³⁴])?"
_EXPRESSION = rf"(?:{_ATOM}){_POWER}(?:\s?[·/]\s?(?:{_ATOM}){_POWER})*"
_TERM = re.compile(rf"([·/]?)\s?({_ATOM})({_POWER})")
_MEASURE = re.compile(rf"(?<![\w.])(\d+(?:\.\d+)*)\s?({_EXPRESSION})(?!{_LETTER}|\d)")
_BARE_UNIT = re.compile(rf"(?<!{_LETTER})(?<!\d)(?<![=×·÷/^.]\s)({_EXPRESSION})(?!{_LETTER}|\d|\s?[=×÷])")
_FULL_WIDTH = re.compile("[０-９Ａ-Ｚａ-ｚ％＝＋－／＜＞．]")
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"

_RUN = rf"(?<!{_LETTER}){_LETTER}{{1,3}}(?!{_LETTER})"
_VARIABLES = re.compile(
    # a run of letters before a subscript, a power or a sign of arithmetic
    rf"{_RUN}(?=[₀-₉²³^]|\s?[{_MATHS}])"
    # or after one, with a minus or a factor between
    rf"|(?:(?<=[{_MATHS}½])|(?<=[{_MATHS}]\s)|(?<=[{_MATHS}]\s[-−\d])|(?<=[{_MATHS}][-−\d])){_RUN}"
    # or either side of a stroke between single letters
    rf"|(?<!{_LETTER}){_LETTER}(?=/{_LETTER}\b)|(?<=\b{_LETTER}/){_LETTER}\b"
)
_SHORT_RUN = re.compile(rf"(?<!{_LETTER})[a-z]{{2,3}}(?!{_LETTER})")


def spoken_form(text: str, language: str) -> str:
    """`text` with symbols as words of "en" or "zh": "9.8 m/s²" becomes "9.8 metres per second squared".

    Control characters, which a synthesiser may take for commands, become spaces; line ends stay. Chinese
    characters inside English are left out, since an English voice can only say that they are Chinese.
    """
    index = 1 if language == "zh" else 0
    text = "".join(_without_control(character) for character in text)
    text = _FULL_WIDTH.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).translate(_TWINS)
    if index == 0:
        text = re.sub(f"[{_HAN}，。！？；：、（）《》]+", " ", text)
    text = _percent_and_degrees(text, index)
    text = _MEASURE.sub(lambda match: f"{match[1]} {_unit_words(match[2], index, match[1])}", text)
    text = _BARE_UNIT.sub(lambda match: _bare_unit(match[1], index), text)
    text = _VARIABLES.sub(lambda match: _spelt(match[0], index), text)
    if index == 1:
        # A short lower-case run among Chinese is a product of variables ("ma", "mgh") far more often than a word.
        text = _SHORT_RUN.sub(lambda match: _spelt(match[0], index), text)
    text = _operators(_powers(text, index), index)
    return re.sub(r"[^\S\n]+", " ", text).strip()


_TWINS = str.maketrans({"⋅": "·", "\u00b5": "μ", "\u2126": "Ω", "\u2206": "Δ"})
"""Characters that look alike."""


def _without_control(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\n" or category not in ("Cc", "Cf", "Cs", "Co", "Cn"):
        return character
    return "" if category == "Cf" else " "


def _percent_and_degrees(text: str, index: int) -> str:
    if index == 1:
        text = re.sub(r"(\d+(?:\.\d+)?)\s?%", r"百分之\1", text)
        return re.sub("°", "度", re.sub("°C|℃", "摄氏度", text))
    text = re.sub(r"(?<=\d)\s?%", " percent", text)
    return re.sub(r"\s?°", " degrees", re.sub(r"\s?(?:°C|℃)", " degrees Celsius", text))


def _bare_unit(expression: str, index: int) -> str:
    terms = _TERM.findall(expression)
    quotient = "/" in expression
    if quotient and len(terms) == 2 and terms[0][1].isupper() and not terms[0][2] and not terms[1][2]:
        quotient = False  # "W/t" is more often a quotient of variables than one of units
    return _unit_words(expression, index, "2") if quotient or expression in _PLAIN_ALONE else expression


def _unit_words(expression: str, index: int, number: str) -> str:
    words: list[str] = []
    terms = [(joint, symbol, _power_of(raised)) for joint, symbol, raised in _TERM.findall(expression)]
    above = [place for place, (joint, _, power) in enumerate(terms) if joint != "/" and power > 0]
    for place, (_, symbol, power) in enumerate(terms):
        singular, plural, chinese = _UNITS[symbol]
        per = place not in above
        if index == 1:
            words.append(("每" if per else "") + _chinese_power(chinese, symbol, abs(power)))
        else:
            noun = plural if above and place == above[-1] and number != "1" else singular
            words.append(("per " if per else "") + _english_power(noun, symbol, abs(power)))
    return "".join(words) if index == 1 else " ".join(words)


def _power_of(raised: str) -> int:
    return int(raised.lstrip("^").translate(_SUPERSCRIPTS) or "1")


def _english_power(noun: str, symbol: str, power: int) -> str:
    if power == 1:
        return noun
    if symbol in _LENGTHS and power in (2, 3):
        return f"{'square' if power == 2 else 'cubic'} {noun}"
    return noun + {2: " squared", 3: " cubed"}.get(power, f" to the power of {power}")


def _chinese_power(noun: str, symbol: str, power: int) -> str:
    if power == 1:
        return noun
    if symbol in _LENGTHS and power in (2, 3):
        return ("平方" if power == 2 else "立方") + noun
    return {2: "二次方", 3: "三次方"}.get(power, f"{power}次方") + noun


def _spelt(run: str, index: int) -> str:
    """Variables letter by letter: "ma" is no word. In English "A" may be the article, so it is spelt as in "eight"."""
    if run in _FUNCTIONS or run in _SHORT_WORDS:
        return run
    letters = (letter.upper() if letter.isascii() else letter for letter in run)
    return " " + " ".join("eigh" if letter == "A" and index == 0 else letter for letter in letters)


def _powers(text: str, index: int) -> str:
    def words(power: str) -> str:
        power = power.translate(_SUPERSCRIPTS)
        if index == 1:
            return {"2": "的平方", "3": "的立方"}.get(power, f"的{power.replace('-', '负')}次方")
        return {"2": " squared ", "3": " cubed "}.get(power, f" to the power of {power.replace('-', 'minus ')} ")

    text = re.sub(r"(?<=[\w)\]])\s?([⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]+)", lambda match: words(match[1]), text)
    text = re.sub(rf"(?<=[\w)\]])\^[({{]?(-?\d+|{_LETTER})[)}}]?", lambda match: words(match[1]), text)
    return re.sub("[₀-₉]+", lambda match: " " + match[0].translate(_SUBSCRIPTS), text).replace("_", " ")


def _operators(text: str, index: int) -> str:
    operand = rf"(?:[\d(]|{_LETTER}\b)"
    after_operand = rf"(?:(?<=[\d)])|(?<=[\d)]\s)|(?<=\b{_LETTER})|(?<=\b{_LETTER}\s))"
    # A minus with an operand on its right only is a sign; "3-5" is a range or a score.
    text = re.sub(rf"(?<![\w)])(?<![\w)]\s)[-−](?=\d|{_LETTER}\b|\s{_LETTER}\b)", _said("negative", index), text)
    text = re.sub(rf"(?<=\s)-(?=\s{operand})", "−", text) if re.search(f"[{_MATHS}\\d]", text) else text
    for sign in "*/<>":
        text = re.sub(rf"{after_operand}{re.escape(sign)}(?=\s?{operand})", _said(sign, index), text)
    for symbol in _SYMBOLS:
        if symbol not in ("*", "/", "<", ">", "negative"):
            text = text.replace(symbol, _said(symbol, index))
    return re.sub(r"\b(sin|cos|tan)\b", lambda match: _FUNCTIONS[match[1]][index], text)


def _said(symbol: str, index: int) -> str:
    words = _SYMBOLS[symbol][index]
    return words if index == 1 else f" {words} "
