import pytest
from hypothesis import given
from hypothesis import strategies as st

from aula.models.spoken import spoken_form


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("g is 9.8 m/s²", "g is 9.8 metres per second squared"),
        ("measured in m/s²", "measured in metres per second squared"),
        ("9.8 m/s^2", "9.8 metres per second squared"),
        ("5 m·s⁻²", "5 metres per second squared"),
        ("2 m²", "2 square metres"),
        ("1000 kg/m³", "1000 kilograms per cubic metre"),
        ("1 kg", "1 kilogram"),
        ("10 N·m", "10 newton metres"),
        ("12,000 km", "12000 kilometres"),
        ("20 °C", "20 degrees Celsius"),
        ("50%", "50 percent"),
        ("-5 degrees", "minus 5 degrees"),
        ("F = m × a", "F equals M times eigh"),
        ("F = ma", "F equals M eigh"),
        ("a = F/m", "eigh equals F over M"),
        ("E = ½mv²", "E equals one half M V squared"),
        ("F = -kx", "F equals minus K X"),
        ("v₀ = 3 m/s", "V 0 equals 3 metres per second"),
        ("P = W/t", "P equals W over T"),
        ("sin θ = 0.5", "sine theta equals 0.5"),
        ("x - 3", "x minus 3"),
        ("10^n", "10 to the power of n"),
        ("x < 5", "x is less than 5"),
        ("this is 力 here", "this is here"),
    ],
)
def test_english_symbols_become_words(text: str, spoken: str) -> None:
    assert spoken_form(text, "en") == spoken


@pytest.mark.parametrize(
    "text", ["A force is a push or a pull.", "and/or", "he/she", "a well-known cat - a dog", "3-5", "Is it so? I am."]
)
def test_plain_english_stays_as_it_is(text: str) -> None:
    assert spoken_form(text, "en") == text


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("重力加速度是9.8 m/s²。", "重力加速度是9.8 米每二次方秒。"),
        ("9.8m/s²", "9.8 米每二次方秒"),
        ("2 m²", "2 平方米"),
        ("1000 kg/m³", "1000 千克每立方米"),
        ("F等于ma", "F等于 M A"),
        ("Ｆ＝ｍａ", "F等于 M A"),
        ("动能是½mv²", "动能是二分之一 M V的平方"),
        ("3×4=12", "3乘以4等于12"),
        ("30%", "百分之30"),
        ("20℃", "20摄氏度"),
        ("-5度", "负5度"),
        ("Newton 定律", "Newton 定律"),
    ],
)
def test_chinese_symbols_become_words(text: str, spoken: str) -> None:
    assert spoken_form(text, "zh") == spoken


def test_control_characters_that_command_a_synthesiser_are_removed() -> None:
    assert spoken_form("one\x01 30S two\x00three\u200b", "en") == "one 30S two three"


@given(st.text(max_size=60), st.sampled_from(["en", "zh"]))
def test_any_text_has_a_spoken_form_without_controls(text: str, language: str) -> None:
    spoken = spoken_form(text, language)
    assert all(character == "\n" or ord(character) >= 32 for character in spoken)
