"""What the assistant says of its own accord, in English and Chinese."""

_PHRASES: dict[str, dict[str, str]] = {
    "greeting": {
        "en": "Hello! Ask me anything about {title}.",
        "zh": "你好！请问我关于《{title}》的任何问题。",
    },
    "nothing_to_repeat": {
        "en": "I have not said anything yet. Ask me a question first.",
        "zh": "我还没有说过什么。请先问一个问题。",
    },
    "unclear": {
        "en": "I could not make that out. Please say it again, close to the microphone.",
        "zh": "我没有听清楚。请靠近麦克风再说一遍。",
    },
    "organisation": {
        "en": "This course does not say. Please ask your teacher.",
        "zh": "这门课程没有说明。请问一下你的老师。",
    },
    "off_topic": {
        "en": "That is outside this course. Ask me about {title}.",
        "zh": "这不属于这门课程。请问我关于《{title}》的问题。",
    },
}


def phrase(name: str, language: str, title: str) -> str:
    """The phrase in that language, or in English where there is no such translation."""
    translations = _PHRASES[name]
    return translations.get(language, translations["en"]).format(title=title)
