"""The registered targets, and how each is found in constant time."""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from async_task.targets.functions import functions_of, is_function
from async_task.targets.policies import Limit
from async_task.targets.target import Target


class Owner(NamedTuple):
    """A target, and the name of its method; None where the target is called itself."""

    target: Target
    method_name: str | None


Index = dict[Any, tuple[Owner, ...]]


class AllowList:
    """The registered targets, each found in constant time by its names, its object and its functions.

    A registered target keeps its object and its functions alive, so that an object's id names nothing else meanwhile.
    """

    def __init__(self, targets: Iterable[Target] = ()) -> None:
        self.by_name: dict[str, Target] = {}
        self.by_thing: Index = {}
        self.by_function: Index = {}
        self.by_limited_queue: Index = {}
        self.limits: Mapping[str, Limit] = {}
        self._entries: dict[Target, list[tuple[Index, Any, Owner]]] = {}
        for one in targets:
            self.add(one)

    def add(self, made: Target) -> None:
        """Register `made` under its names, in place of targets that had them before."""
        replaced = {self.by_name[name] for name in made.names if name in self.by_name}
        self.by_name.update(dict.fromkeys(made.names, made))
        for one in replaced:
            if self.by_name[one.name] is not one:  # what is left are aliases, which only rows name
                self._remove(one)
        self._entries[made] = list(self._entries_of(made))
        for index, key, owner in self._entries[made]:
            index[key] = (*index.get(key, ()), owner)
        self._set_limits(made, *replaced)

    def owners(self, function: Any) -> Sequence[Owner]:
        """The targets that `function` is, or else is a method of."""
        is_bound = isinstance(function, types.MethodType | types.BuiltinMethodType)
        if is_bound and (found := self.by_thing.get(id(function.__self__))):
            owner = found[0].target
            if owner.has(function.__name__, function):
                return [Owner(owner, function.__name__)]
        if found := self.by_thing.get(id(function)):
            return found
        return (is_function(function) and self.by_function.get(function)) or self._searched(function)

    def _searched(self, function: Any) -> list[Owner]:
        """The owners of a function that is in no index.

        Each target is asked: an attribute may have been set after its target was registered, or exist only when it is
        asked for. Nothing is remembered of it, because such an attribute can change again.
        """
        name = getattr(function, "__name__", "")
        named = isinstance(name, str) and name  # that of a mock may be a mock
        targets = tuple(self._entries)
        found = [Owner(one, name) for one in targets if named and one.has(name, function)]
        return found or [Owner(one, method) for one in targets for method in one.replaced_by(function)]

    def _entries_of(self, one: Target) -> Iterator[tuple[Index, Any, Owner]]:
        yield self.by_thing, id(one.thing), Owner(one, None)
        for function in functions_of(one.thing):
            yield self.by_function, function, Owner(one, function.__name__)
        if is_limited(one):
            yield self.by_limited_queue, one.policy.queue, Owner(one, None)

    def _remove(self, gone: Target) -> None:
        for index, key, owner in self._entries.pop(gone, ()):
            left = tuple(one for one in index[key] if one is not owner)
            if left:
                index[key] = left
            else:
                del index[key]

    def _set_limits(self, *changed: Target) -> None:
        for queue in {one.policy.queue for one in changed if one.policy.queue and one.policy.limit}:
            # A new dict each time: worker threads read the former one meanwhile.
            limits = {name: limit for name, limit in self.limits.items() if name != queue}
            if owners := self.by_limited_queue.get(queue):
                limits[queue] = owners[0].target.policy.limit
            self.limits = limits


def is_limited(one: Target) -> bool:
    return bool(one.policy.limit) and one.policy.queue is not None
