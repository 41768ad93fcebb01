"""Token bytes of one sequence become text: whole characters only, never part of a stop string.

Stop strings are looked for by code point in the decoded text, with the automaton of Aho and
Corasick ("Efficient string matching", CACM 18(6), 1975): every character costs amortised
constant time however many stop strings there are and however long they get. The automaton's
depth after a character is the length of the longest ending of the text that may still become a
stop string, which is exactly what has to be held back. Pure.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections import deque
from collections.abc import Iterable

_ROOT = 0


class _StopAutomaton:
    """A trie over the stop strings with failure links. States are indexes, 0 is the root."""

    __slots__ = ("depth", "failure", "first_characters", "goto", "match_length")

    def __init__(self, stops: Iterable[str]) -> None:
        self.goto: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.failure = [_ROOT]
        self.match_length = [0]
        """Length of the longest stop string that ends in the state; 0 when none does."""
        for stop in stops:
            self._add(stop)
        self._link()
        self.first_characters = frozenset(self.goto[_ROOT])

    def _add(self, stop: str) -> None:
        state = _ROOT
        for character in stop:
            following = self.goto[state].get(character)
            if following is None:
                following = len(self.goto)
                self.goto[state][character] = following
                self.goto.append({})
                self.depth.append(self.depth[state] + 1)
                self.failure.append(_ROOT)
                self.match_length.append(0)
            state = following
        self.match_length[state] = len(stop)

    def _link(self) -> None:
        waiting = deque(self.goto[_ROOT].values())
        while waiting:
            state = waiting.popleft()
            for character, following in self.goto[state].items():
                self.failure[following] = self.step(self.failure[state], character)
                if not self.match_length[following]:
                    inherited = self.match_length[self.failure[following]]
                    self.match_length[following] = inherited
                waiting.append(following)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while True:
            following = self.goto[state].get(character)
            if following is not None:
                return following
            if state == _ROOT:
                return _ROOT
            state = self.failure[state]


class TextAssembler:
    """Turns the pieces (token bytes) of one sequence into text that may be released.

    * Bytes are decoded as UTF-8. A character is released once it is complete; a byte that can
      belong to no character becomes U+FFFD, and only once that is certain.
    * The sequence stops with the first stop string that is completed; of several completed by
      the same character the longest counts. The text is cut before it. How the bytes were
      split into pieces makes no difference. Empty stop strings are ignored.
    * An ending that may be the beginning of a stop string is held back.
    * ``delivered_characters`` (code points) is for a sequence that continues elsewhere: feed
      the pieces of the tokens already made, then the new ones, and only the text beyond what
      was delivered comes out.
    """

    __slots__ = (
        "_automaton",
        "_finished",
        "_held",
        "_partial",
        "_plain",
        "_skip",
        "_state",
        "_stopped",
    )

    def __init__(self, stops: Iterable[str] = (), *, delivered_characters: int = 0) -> None:
        if delivered_characters < 0:
            raise ValueError("delivered_characters is negative")
        wanted = tuple(stop for stop in stops if stop)
        self._automaton = _StopAutomaton(wanted) if wanted else None
        self._state = _ROOT
        self._held = ""
        self._partial = b""
        self._skip = delivered_characters
        self._stopped = False
        self._finished = False
        self._plain = self._is_plain()

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed; nothing more will be released then."""
        return self._stopped

    @property
    def holding(self) -> bool:
        """Whether bytes or characters were pushed that could not be released yet."""
        return bool(self._held or self._partial)

    def push(self, piece: bytes) -> str:
        """Add the bytes of one token; returns the text that may be released now, maybe none.

        Raises ValueError after ``finish``.
        """
        if self._plain and piece.isascii():
            return piece.decode("ascii")
        if self._stopped:
            return ""
        if self._finished:
            raise ValueError("a piece was pushed after finish()")
        text = self._decode(piece, final=False)
        released = self._release(self._scan(text, self._automaton) if self._automaton else text)
        self._plain = self._is_plain()
        return released

    def finish(self) -> str:
        """Release what is held when generation ended for another reason than a stop string.

        An unfinished character becomes U+FFFD. Returns nothing after a stop or a second time.
        """
        if self._stopped or self._finished:
            return ""
        self._finished = True
        self._plain = False
        text = self._decode(b"", final=True)
        if self._automaton:
            text = self._scan(text, self._automaton)
            if not self._stopped:
                text += self._held
                self._held = ""
        return self._release(text)

    def _is_plain(self) -> bool:
        """Whether an ASCII piece can go straight through."""
        return not (
            self._automaton or self._partial or self._skip or self._stopped or self._finished
        )

    def _decode(self, piece: bytes, *, final: bool) -> str:
        data = self._partial + piece if self._partial else piece
        text, used = utf_8_decode(data, "replace", final)
        self._partial = data[used:]
        return text

    def _scan(self, text: str, automaton: _StopAutomaton) -> str:
        """Run the automaton over new text; returns what can no longer be part of a stop."""
        state = self._state
        if state == _ROOT and automaton.first_characters.isdisjoint(text):
            return text
        whole = self._held + text
        held_before = len(self._held)
        for index, character in enumerate(text):
            state = automaton.step(state, character)
            matched = automaton.match_length[state]
            if matched:
                self._stopped = True
                self._held = ""
                self._partial = b""
                return whole[: held_before + index + 1 - matched]
        self._state = state
        kept = len(whole) - automaton.depth[state]
        self._held = whole[kept:]
        return whole[:kept]

    def _release(self, text: str) -> str:
        if not self._skip:
            return text
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return text[skipped:]
