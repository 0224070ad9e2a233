"""Questions: each has an option that answers it beforehand, and a check that says what is wrong with an answer."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.prompt import InvalidResponse, PromptBase

from fedpath.core.errors import ConfigError

Check = Callable[[str], str]
"""Returns an answer as it is written, or raises a ValueError that says what is wrong."""


class Questions:
    """Asks, or takes what the options say.

    Args:
        console: where questions are shown.
        silent: ask nothing; what no option answers is left at its default.
    """

    def __init__(self, console: Console, *, silent: bool) -> None:
        self._console, self._silent = console, silent

    def ask(
        self, question: str, check: Check, *, option: str, given: str | None = None, default: str | None = None
    ) -> str:
        """Return an answer that passes its check.

        Args:
            question: in words.
            check: of the answer.
            option: that answers it beforehand.
            given: what that option says; None where it does not stand there.
            default: the answer of who says nothing; None where there is none.

        Raises:
            ConfigError: the option's value is wrong, or nothing may be asked and there is no default.
        """
        if given is None and not self._silent:
            return _Prompt(question, check, default, self._console).asked()
        answer = default if given is None else given
        if answer is None:
            raise ConfigError(f"{option} is missing: {question[0].lower()}{question[1:]}", remedy=f"give {option}")
        try:
            return check(answer)
        except ValueError as error:
            raise ConfigError(f"{option} {answer}: {error}", remedy=f"correct {option}") from None

    def choose(self, question: str, choices: Mapping[str, str], *, option: str, given: str | None) -> str:
        """Return one of a few names, each of which is explained; as ``ask`` does.

        Raises:
            ConfigError: as ``ask`` does.
        """

        def known(answer: str) -> str:
            if answer not in choices:
                raise ValueError(f"should be one of {', '.join(choices)}")
            return answer

        if given is None and not self._silent:
            for name, meaning in choices.items():
                self._console.print(f"  [bold]{escape(name):<12}[/bold] {escape(meaning)}")
        # Whose file it is cannot be guessed; what to begin with can.
        default = None if self._silent and option == "--role" else next(iter(choices))
        return self.ask(question, known, option=option, given=given, default=default)


class _Prompt(PromptBase[str]):
    """rich's prompt with a check of ours: it asks again, and says why."""

    response_type = str

    def __init__(self, question: str, check: Check, default: str | None, console: Console) -> None:
        # A default is what an empty line stands for; it is shown where it is not empty itself.
        super().__init__(escape(question), console=console, show_default=bool(default))
        self._check, self._default = check, default

    def asked(self) -> str:
        """Ask until an answer passes."""
        return self._check(self() if self._default is None else self(default=self._default))

    def process_response(self, value: str) -> str:
        """Check an answer."""
        try:
            return self._check(value.strip())
        except ValueError as error:
            raise InvalidResponse(f"[prompt.invalid]{escape(str(error))}") from None


def checked_by(schema: Any, words: str) -> Check:
    """Return a check that a type of the configuration makes.

    Args:
        schema: the type.
        words: what is wrong with an answer that does not have the type's form.
    """
    adapter: TypeAdapter[str] = TypeAdapter(schema)

    def check(answer: str) -> str:
        try:
            return adapter.validate_python(answer)
        except ValidationError as error:
            raise ValueError(reason_of(error, words)) from None

    return check


def reason_of(error: ValidationError, words: str) -> str:
    """Return the first fault as a reason; ``words`` where a text does not have the form that it needs."""
    fault = error.errors(include_url=False)[0]
    return fault["msg"].removeprefix("Value error, ") if fault["type"] == "value_error" else words


def listed(answer: str) -> list[str]:
    """Return the entries of a list that is written with commas."""
    return [entry for part in answer.split(",") if (entry := part.strip())]
