"""The door for people: pages for students, teachers and operators, and what these pages ask.

static/            the pages themselves: HTML, CSS and ES modules as the browser takes them, nothing to build
files.py           hands them out, with the headers that keep a page to itself
answers.py         errors as the pages read them
feeds.py           server-sent events: a bounded queue for each client, a heartbeat by the Clock
student.py         courses and their passages; questions themselves go to the Realtime door
inviting.py        the code by which a class comes in
teacher.py         captions of a lecture (lecture.py), questions by topic (topics.py, likeness.py)
operator.py        what the runtime does now (state.py), latency over time (spread.py), overrides
"""

from starlette.routing import BaseRoute, Route, WebSocketRoute

from aula.servers.house import House
from aula.servers.pages.answers import guarded
from aula.servers.pages.files import Files
from aula.servers.pages.inviting import Inviting
from aula.servers.pages.operator import Operator
from aula.servers.pages.student import Student
from aula.servers.pages.teacher import Teacher


def routes(house: House) -> list[BaseRoute]:
    """Every route of this door."""
    files, student, teacher, operator = Files(), Student(house), Teacher(house), Operator(house)
    inviting = Inviting(house)
    return [
        Route("/", files.page("student.html"), methods=["GET"], name="student"),
        Route("/teacher", files.page("teacher.html"), methods=["GET"], name="teacher"),
        Route("/operator", files.page("operator.html"), methods=["GET"], name="operator"),
        Route("/favicon.ico", files.page("icon.svg"), methods=["GET"]),
        Route("/pages/files/{name:path}", files.file, methods=["GET"], name="page_files"),
        Route("/pages/me", guarded(student.me), methods=["GET"]),
        Route("/pages/passage", guarded(student.passage), methods=["GET"]),
        Route("/pages/invitation", guarded(inviting.invitation), methods=["GET"]),
        Route("/pages/invitation", guarded(inviting.invite), methods=["POST"]),
        Route("/pages/invitation", guarded(inviting.end), methods=["DELETE"]),
        Route("/pages/questions", guarded(teacher.questions), methods=["GET"]),
        WebSocketRoute("/pages/captions", teacher.captions, name="captions"),
        Route("/pages/state", guarded(operator.state), methods=["GET"]),
        Route("/pages/override", guarded(operator.override), methods=["POST"]),
        Route("/pages/renew", guarded(operator.renew), methods=["POST"]),
    ]
