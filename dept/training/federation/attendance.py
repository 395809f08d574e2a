"""Who takes part in a federation: silos that are there, and sources that join and leave."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection

from dept.config.options import DeptOptions
from dept.training.federation.roster import Roster
from dept.training.federation.server_files import Plan, ServerFiles, ServerState
from dept.transport.flower.joining import Member
from dept.transport.flower.messages import Parcel
from dept.transport.flower.silos import Silos


class Attendance:
    """Looks which silos are there, and draws the sources of a round from theirs.

    Args:
        options: options of ``algorithms.dept``.
        seed: seed of the run.
        rounds: number of rounds.
        silos: the silos.
        files: the files of the server.
        state: what the server keeps between rounds, of which this reads the round. By reference.
        say: shows a sentence.
        clock: seconds.
        sleep: waits some seconds between two looks at the silos.

    Attributes:
        roster: which sources the federation has in which rounds.
    """

    def __init__(
        self,
        *,
        options: DeptOptions,
        seed: int,
        rounds: int,
        silos: Silos,
        files: ServerFiles,
        state: ServerState,
        say: Callable[[str], None],
        clock: Callable[[], float],
        sleep: Callable[[], None],
    ) -> None:
        federation = options.federated
        assert federation is not None
        self.options, self.federation, self.seed, self.rounds = options, federation, seed, rounds
        self.silos, self.files, self.say = silos, files, say
        self.clock, self.sleep, self.state = clock, sleep, state
        self.roster = files.roster(options.sources_per_round) or Roster.of(
            federation.sources, options.sources_per_round
        )

    def look(self) -> list[tuple[Member, Parcel]]:
        """Collect replies, and let sources join and leave with the next round that is drawn."""
        replies = self.silos.poll()
        if not self.options.allow_source_changes:
            return replies
        members = self.silos.members.values()
        leaving = {source for member in members for source in member.leaving}
        known, here = set(self.roster.sources), {s for m in members for s in m.sources}
        joined, left = here - known - leaving, known & leaving
        if joined or left:
            self._change(joined, left)
        return replies

    def _change(self, joined: Collection[str], left: Collection[str]) -> None:
        index = self.state.round
        coming = index if self.files.plan(index) is None else index + 1
        if coming >= self.rounds:
            return
        self.roster.change(coming, joined=joined, left=left)
        self.files.write_roster(self.roster)
        said = [f"{', '.join(sorted(joined))} joined"] if joined else []
        said += [f"{', '.join(sorted(left))} left"] if left else []
        self.say(
            f"from round {coming + 1} on, the sources are {', '.join(self.roster.sources)} "
            f"({'; '.join(said)})"
        )

    def has_left(self, member: Member, round_index: int) -> bool:
        """Whether all sources of a silo have left before a round."""
        own = set(member.sources)
        return own == set(member.leaving) and not own & set(self.roster.sources_of(round_index))

    def gather(self) -> None:
        """Wait until every source has its silo, or for ``round_timeout`` until enough have.

        When only the last model is left to send, silos that have finished do not come back.
        """
        began, said = self.clock(), False
        is_finishing = self.state.round == self.rounds
        patience = self.federation.grace if is_finishing else self.federation.round_timeout
        while True:
            self.look()
            here = [s for s in self.roster.sources if self.silos.member_of(s) is not None]
            if here and len(here) == len(self.roster.sources):
                return
            if self.clock() - began > patience:
                if is_finishing:
                    return
                if len(here) >= self.federation.min_sources:
                    self.say(f"training begins with {', '.join(here)}: no silo has the others")
                    return
                if not said:
                    self.say(
                        f"{len(here)} sources are there, and min_sources is "
                        f"{self.federation.min_sources}: the server waits for silos"
                    )
                    said = True
            self.sleep()

    def draw(self) -> Plan:
        """S_t, from the sources of all silos that can train now; the draw of a job if all can."""
        index, said = self.state.round, False
        while True:
            here = {s for m in self.silos.reachable(index) for s in m.sources}
            able = here & set(self.roster.sources)
            if len(able) >= self.federation.min_sources:
                break
            if not said:
                self.say(
                    f"{len(able)} sources can train round {index + 1}, and min_sources is "
                    f"{self.federation.min_sources}: the server waits for silos"
                )
                said = True
            self.sleep()
            self.look()
        drawn = self.roster.drawn(able, seed=self.seed, round_index=index)
        return Plan(index, secrets.token_hex(8), drawn)
