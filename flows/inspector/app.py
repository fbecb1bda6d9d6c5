"""The pages, and the only addresses there are.

Every address begins with a secret of this process, so that whoever doesn't know it, another web page in the same
browser included, can neither read nor decide anything. No address names a file.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args
from urllib.parse import urlencode

from fastapi import FastAPI, Form, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tutelage.configs.errors import UserError
from tutelage.flows.inspector import overview
from tutelage.flows.inspector.index import Filters, Index, Shown, Sort
from tutelage.flows.inspector.measures import Measures
from tutelage.flows.inspector.released import Released
from tutelage.privacy import review

if TYPE_CHECKING:
    import jinja2

PAGE_ROWS = 50
_NEIGHBOURS = 8
_MAX_CHARS = 20_000
_HEADERS = {
    # nothing from elsewhere, nobody's frame, and the address, which is the secret, is told to nobody
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",  # with `no-referrer` a browser's own forms have no origin to go by
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Inspector:
    """A run that is looked at.

    Args:
        released: What it released.
        decisions: The review file.
        by: Who decides.
    """

    def __init__(self, released: Released, decisions: Path, by: str) -> None:
        self.released, self.path, self.by = released, decisions, by
        self.decisions = review.read(decisions)
        self.index = Index(released.lessons, released.labels, released.learned, self.decisions)
        self.measures = Measures(released.lessons)
        self.token = secrets.token_urlsafe(24)
        self._warm()

    def measured(self) -> None:
        """Take in what has been computed of all texts."""
        assert self.measures.twins is not None
        import numpy as np

        labels = [one.completion if one.completion in self.released.labels else "" for one in self.released.lessons]
        sizes = np.bincount(self.measures.twins)[self.measures.twins]  # (texts,)
        self.index.learn(self.measures.fit(labels), sizes)
        self._warm()

    def _warm(self) -> None:
        """Ask what every page asks, so that nobody waits for the first answer."""
        self.index.facets()
        for order in get_args(Sort):
            self.index.count(Filters(sort=order))
        overview.of(self.released, self.index, self.measures)

    def decide(self, lesson: str, verdict: review.Verdict, prompt: str | None, completion: str | None) -> None:
        """Keep a decision about a lesson; it is on the disk when this returns."""
        edit = {"prompt": prompt, "completion": completion} if verdict == "edit" else {}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        decision = review.Decision(lesson=lesson, verdict=verdict, by=self.by, at=now, **edit)
        review.append(self.path, decision)
        if verdict == "open":
            self.decisions.pop(lesson, None)
        else:
            self.decisions[lesson] = decision
        self.index.decide(lesson, verdict)


def make_app(inspector: Inspector, hosts: list[str]) -> FastAPI:
    """The pages of a run.

    Args:
        inspector: The run.
        hosts: Names by which a browser may ask for them: a page elsewhere that lets its own name point here is refused.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    at, index = f"/{inspector.token}", inspector.index

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        shown = {"at": at, "run": inspector.released, "progress": inspector.measures.progress, "link": link, **values}
        return HTMLResponse(_environment().get_template(name).render(**shown), status)

    def link(path: str, filters: Filters | None = None, **more: Any) -> str:
        asked = {**(_asked(filters) if filters else {}), **{name: one for name, one in more.items() if one is not None}}
        return f"{at}{path}{'?' + urlencode(asked) if asked else ''}"

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.scope["path"]
        known = secrets.compare_digest(path.split("/")[1].encode() if "/" in path else b"", inspector.token.encode())
        elsewhere = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        origin = request.headers.get("origin")
        foreign = origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host')}"
        if not known:
            answer: Response = PlainTextResponse("not found: use the address that `tutelage inspect` printed\n", 404)
        elif elsewhere or foreign:
            answer = PlainTextResponse("refused: this was asked for by another site\n", 403)
        else:
            answer = await go_on(request)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)  # before the guard

    @app.exception_handler(RequestValidationError)
    async def unclear(request: Request, error: RequestValidationError) -> HTMLResponse:
        keys = sorted({str(one["loc"][-1]) for one in error.errors()})
        return page("problem.html", 400, problem=f"This address asks for something that can't be: {', '.join(keys)}.")

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> HTMLResponse:
        return page("problem.html", error.status_code, problem=error.detail)

    @app.exception_handler(UserError)
    async def mendable(request: Request, error: UserError) -> HTMLResponse:
        return page("problem.html", 500, problem=str(error))

    @app.get(f"{at}/style.css")
    def style() -> Response:
        return Response(_environment().get_template("inspector.css").render(), media_type="text/css")

    @app.get(f"{at}/keys.js")
    def keys() -> Response:
        return Response(_text("keys.js"), media_type="text/javascript")

    @app.get(f"{at}/")
    def browse(filters: Annotated[Filters, Query()], request: Request) -> HTMLResponse:
        return listed(filters, 0)

    @app.get(f"{at}/from/{{start}}")
    def browse_from(start: int, filters: Annotated[Filters, Query()]) -> HTMLResponse:
        return listed(filters, start)

    def listed(filters: Filters, start: int) -> HTMLResponse:
        start = max(0, start)
        count = index.count(filters)
        rows = index.page(filters, start, PAGE_ROWS)
        return page("browse.html", filters=filters, facets=index.facets(), rows=rows, start=start, count=count,
                    total=index.total, page_rows=PAGE_ROWS)  # fmt: skip

    @app.get(f"{at}/example/{{lesson}}")
    def example(lesson: str, filters: Annotated[Filters, Query()]) -> HTMLResponse:
        return read(lesson, filters, None)

    @app.get(f"{at}/at/{{place}}/{{lesson}}")
    def example_at(place: int, lesson: str, filters: Annotated[Filters, Query()]) -> HTMLResponse:
        return read(lesson, filters, max(0, place))

    def read(lesson: str, filters: Filters, place: int | None) -> HTMLResponse:
        shown = index.one(lesson)
        if shown is None:
            raise HTTPException(404, "No released text has this id.")
        before, after = around(filters, place, shown)
        pairs = inspector.measures.neighbours(shown.place, _NEIGHBOURS)
        near = list(zip(index.at([place for place, _ in pairs]), (cosine for _, cosine in pairs), strict=True))
        return page("example.html", filters=filters, one=shown, before=before, after=after, near=near, place=place,
                    decision=inspector.decisions.get(lesson), labels=sorted(inspector.released.labels))  # fmt: skip

    def around(filters: Filters, place: int | None, shown: Shown) -> tuple[str | None, str | None]:
        """Links to the texts before and after it among those that the filters leave."""
        if place is None:
            return None, None
        first = max(0, place - 1)
        rows = index.page(filters, first, 3)
        here = next((i for i, row in enumerate(rows) if row.id == shown.id), None)
        if here is None:  # it has left them: what comes next has taken its place
            before = (first, rows[0]) if place > 0 and rows else None
            after = (place, rows[place - first]) if len(rows) > place - first else None
        else:
            before = (first + here - 1, rows[here - 1]) if here > 0 else None
            after = (first + here + 1, rows[here + 1]) if len(rows) > here + 1 else None
        places = [pair and link(f"/at/{pair[0]}/{pair[1].id}", filters) for pair in (before, after)]
        return places[0], places[1]

    @app.post(f"{at}/decide/{{lesson}}")
    def decide(
        lesson: str,
        filters: Annotated[Filters, Query()],
        verdict: Annotated[review.Verdict, Form()],
        place: Annotated[int | None, Form()] = None,
        prompt: Annotated[str | None, Form(max_length=_MAX_CHARS)] = None,
        completion: Annotated[str | None, Form(max_length=_MAX_CHARS)] = None,
    ) -> Response:
        shown = index.one(lesson)
        if shown is None:
            raise HTTPException(404, "No released text has this id.")
        prompt, completion = _edited(prompt), _edited(completion) if completion is not None else None
        if verdict == "edit":
            if not prompt or completion is None:
                raise HTTPException(400, "An edited text can't be empty: reject it instead.")
            if shown.label and completion not in inspector.released.labels:
                raise HTTPException(400, "This is none of the run's labels.")
            structure = inspector.released.structure if shown.kind == "example" and not shown.label else None
            completion = structure.read(completion) if structure else completion
            if completion is None:
                raise HTTPException(400, "This answer lacks the structure that the task asks for: task.completion.")
        inspector.decide(lesson, verdict, prompt, completion)
        _, after = around(filters, place, shown)
        back = link(f"/at/{place}/{lesson}", filters) if place is not None else link(f"/example/{lesson}", filters)
        return RedirectResponse(after if after and verdict != "open" else back, 303)

    @app.get(f"{at}/overview")
    def over() -> HTMLResponse:
        return page("overview.html", **overview.of(inspector.released, index, inspector.measures))

    @app.get(f"{at}/report")
    def report() -> Response:
        if inspector.released.page is None:
            raise HTTPException(404, "No report has been made yet: `tutelage report RUN` makes one.")
        # its style stands in the page itself
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
        return HTMLResponse(inspector.released.page.read_text(), headers={"Content-Security-Policy": policy})

    return app


def _asked(filters: Filters) -> dict[str, Any]:
    asked = filters.model_dump(exclude_defaults=True)
    return {name: str(value).lower() if isinstance(value, bool) else value for name, value in asked.items()}


def _edited(text: str | None) -> str | None:
    # browsers send line ends as \r\n
    return None if text is None else text.replace("\r\n", "\n").strip()


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    folder = Path(__file__).parent
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, folder.parent / "report"]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _text(name: str) -> str:
    return files("tutelage.flows.inspector").joinpath(name).read_text()
