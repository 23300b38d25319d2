# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The files of a recording: rosbag2 folders, single .mcap and .db3 files, ROS 1 bags.

rosbags refuses a recording as a whole for one channel that is not ROS's, one definition that cannot be parsed, a missing
metadata.yaml or a recorder that was killed. Here only what cannot be read is left out, and noted.
"""

from __future__ import annotations

import contextlib
import heapq
import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from operator import itemgetter
from pathlib import Path

from rosbags import rosbag1
from rosbags.interfaces import Connection, ConnectionExtRosbag2, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import storage_mcap
from rosbags.rosbag2.reader import DirectoryReader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from ruamel.yaml import YAML

from ..errors import InputError
from .text import read_text

SUFFIXES = (".mcap", ".db3", ".bag")
_REMEDIES = {
    ".mcap": "mcap recover {file} -o {whole}",
    ".db3": "sqlite3 {file} .dump | sed 's/^ROLLBACK.*/COMMIT;/' | sqlite3 {whole}",
    ".bag": "rosbag reindex {file}",
}
"""What saves the messages that can be read."""
_ZSTD = b"\x28\xb5\x2f\xfd"
_DEFINITIONS = {"ros2msg": MessageDefinitionFormat.MSG, "ros2idl": MessageDefinitionFormat.IDL}


def is_bag(path: Path) -> bool:
    """Whether a path looks like a bag: by its suffix, or a folder with a rosbag2's metadata or storage in it."""
    return path.suffix in SUFFIXES or (
        path.is_dir() and any(file.name == "metadata.yaml" or file.suffix in SUFFIXES for file in path.iterdir())
    )


class BagStorage:
    """The messages of a recording.

    Attributes:
        connections: Topics and their types, of the messages that are encoded as ROS does it.
        is_ros1: Whether they are encoded as ROS 1 does it.

    Raises:
        InputError: Nothing can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._notes = path, []
        self._unreadable: dict[str, dict[int, str]] = {}
        self._stack = contextlib.ExitStack()
        try:
            self._readers = self._open()
        except BaseException:
            self.close()
            raise
        self.is_ros1 = isinstance(self._readers[0], rosbag1.Reader)
        self.connections: list[Connection] = []
        for connection in (c for reader in self._readers for c in reader.connections):
            encoding = "cdr" if self.is_ros1 else connection.ext.serialization_format
            if encoding == "cdr":
                self.connections.append(connection)
            else:
                self._notes.append(f"{connection.topic} is left out: its messages are {encoding or 'of no encoding'}, not ROS's")
        self._keep_one_type_a_topic()

    def _keep_one_type_a_topic(self) -> None:
        """The one with the most messages."""
        counts = Counter()
        for connection in self.connections:
            counts[connection.topic, connection.msgtype] += connection.msgcount
        chosen = {topic: type_ for (topic, type_), _ in reversed(counts.most_common())}
        for topic, type_ in counts:
            if type_ != chosen[topic]:
                self._notes.append(f"messages of {type_} on {topic} are left out: most are of {chosen[topic]}")
        self.connections = [c for c in self.connections if c.msgtype == chosen[c.topic]]

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    @property
    def notes(self) -> list[str]:
        """What could not be read so far."""
        return self._notes + [
            f"{len(times)} messages on {topic} cannot be read ({next(iter(times.values()))}): they are left out"
            for topic, times in self._unreadable.items()
        ]

    def _raw(self, topics: Iterable[str]) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, time, bytes) in the order of recording. Raises `InputError` where the storage is damaged."""
        wanted = set(topics)
        chosen = ((reader, [c for c in self.connections if c.owner is reader and c.topic in wanted]) for reader in self._readers)
        try:
            yield from heapq.merge(*(reader.messages(some) for reader, some in chosen if some), key=itemgetter(1))
        except Exception as error:  # the storage layers raise whatever their decoders do
            remedies = " and ".join(_remedy(getattr(reader, "path", self.path)) for reader in self._readers)
            raise InputError(
                f"{self.path} is damaged: {type(error).__name__}: {error}; record it again, or save what can be read: {remedies}"
            ) from error

    def messages(self, topics: Iterable[str]) -> Iterator[tuple[Connection, int, bytes, object]]:
        """(connection, time, bytes, message) in the order of recording; what cannot be decoded is left out and noted."""
        for connection, time_ns, data in self._raw(topics):
            try:
                if data[:4] == _ZSTD:  # of a folder without the metadata that says so
                    data = storage_mcap.DECOMPRESSORS["zstd"](data, 0)
                message = _decoder(connection.msgtype, connection.msgdef, self.is_ros1)(data, connection.msgtype)
            except Exception as error:  # whatever rosbags' decoders do; MemoryError for a length nobody has
                self._unreadable.setdefault(connection.topic, {})[time_ns] = str(error) or type(error).__name__
                continue
            yield connection, time_ns, data, message

    # ---- opening

    def _open(self) -> list:
        if not self.path.exists():
            raise InputError(f"no bag at {self.path}: give a rosbag2 folder, an .mcap or .db3 file, or a ROS 1 .bag")
        if not self.path.is_dir():
            return [self._reader(self.path)]
        files, compressed = self._files()
        if compressed:
            return [self._enter(self.path, _CompressedFolder)]
        readers, errors = [], []
        for file in files:
            try:
                readers.append(self._reader(file))
            except InputError as error:
                errors.append(error)
        if not readers:
            raise errors[0]
        self._notes += map(str, errors)
        return readers

    def _files(self) -> tuple[list[Path], bool]:
        """The files of the folder in the order of recording, and whether they are compressed as a whole or by the message."""
        there = [file for file in self.path.iterdir() if file.suffix in SUFFIXES]
        there.sort(key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)])
        metadata, listed = self.path / "metadata.yaml", []
        if metadata.is_file():
            try:
                about = YAML(typ="safe", pure=True).load(read_text(metadata))["rosbag2_bagfile_information"]
                listed = [self.path / Path(name).name for name in about["relative_file_paths"]]
                if (about.get("compression_mode") or "none").lower() != "none":
                    return listed, True
            except Exception as error:  # as many kinds as there are ways to damage it
                self._notes.append(f"{metadata} cannot be used ({type(error).__name__}): 'ros2 bag reindex' makes it again")
            missing = [file.name for file in listed if not file.exists()]
            if missing:
                self._notes.append(f"{self.path} lacks {', '.join(missing)}, which metadata.yaml names")
                listed = [file for file in listed if file.exists()]
        if listed:
            return listed, False
        if len({(re.sub(r"_\d+$", "", file.stem), file.suffix) for file in there}) > 1:
            names = ", ".join(file.name for file in there)
            raise InputError(f"{self.path} holds several recordings ({names}) and no metadata.yaml that names one: give the file")
        if not there:
            nested = next((folder for folder in sorted(self.path.iterdir()) if folder.is_dir() and is_bag(folder)), None)
            packed = next((file for file in sorted(self.path.iterdir()) if file.suffix in (".zstd", ".zst")), None)
            hint = f"did you mean {nested}?" if nested else "the folder holds no .mcap, .db3 or .bag file"
            hint = _unpack(packed) if packed else hint
            raise InputError(f"no bag at {self.path}: {hint}")
        return there, False

    def _reader(self, file: Path):
        try:
            with file.open("rb") as opened:
                magic = opened.read(16)
        except OSError as error:
            raise InputError(f"cannot open the bag {file}: {error.strerror}") from None
        if not magic:
            raise InputError(f"cannot open the bag {file}: it is empty, record it again")
        kinds = {b"\x89MCAP0": _Mcap, b"SQLite format 3": _Sqlite, b"#ROSBAG": rosbag1.Reader}
        kind = next((kind for start, kind in kinds.items() if magic.startswith(start)), None)
        if kind is None:
            compressed = f", {_unpack(file)}" if magic.startswith(_ZSTD) else ""
            raise InputError(f"cannot open the bag {file}: it is no MCAP, sqlite3 or ROS 1 recording{compressed}")
        reader = self._enter(file, kind)
        self._notes += getattr(reader, "notes", [])
        return reader

    def _enter(self, path: Path, kind: type):
        try:
            reader = kind(path)
            reader.open()
        except Exception as error:  # as many kinds as there are ways to damage a bag
            reason = str(error) or type(error).__name__
            raise InputError(
                f"cannot open the bag {path}: {reason}; is it complete? Save what can be read: {_remedy(path)}"
            ) from error
        self._stack.callback(reader.close)
        return reader


def _remedy(file: Path) -> str:
    remedy = _REMEDIES.get(file.suffix, "unpack the files of {file} with 'zstd -d' and give one of them")
    return remedy.format(file=shlex.quote(str(file)), whole=shlex.quote(str(file.with_stem(f"{file.stem}_whole"))))


def _unpack(file: Path) -> str:
    name = file.with_suffix("") if file.suffix in (".zstd", ".zst") else file.with_stem(f"{file.stem}_unpacked")
    return f"it is compressed: unpack it with 'zstd -d {file} -o {name}'"


@lru_cache(maxsize=64)
def _decoder(type_name: str, definition: MessageDefinition, is_ros1: bool) -> Callable:
    """By the definition in the bag; by that of ROS where it has none that can be used. One that lacks fields which ROS has is of
    other messages: what is given raises `ValueError` then."""
    store, ros = get_typestore(Stores.EMPTY), get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_HUMBLE)
    try:
        store.register(_types(type_name, definition))
        store.generate_msgdef(type_name)  # fails where it lacks a part
    except Exception:  # whatever rosbags' parsers do
        store = ros
    for name in store.fielddefs.keys() & ros.fielddefs.keys():
        there, wanted = ({field for field, _ in one.fielddefs[name][1]} for one in (store, ros))
        if lacking := wanted - there:
            text = f"the definition of {name} lacks {', '.join(sorted(lacking))}"

            def refuse(*_: object, text: str = text) -> None:
                raise ValueError(text)

            return refuse
    return store.deserialize_ros1 if is_ros1 else store.deserialize_cdr


def _types(type_name: str, definition: MessageDefinition) -> dict:
    text = definition.data
    if not text.strip():
        raise ValueError("no definition")
    if definition.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(text, type_name)
    parts = (part.partition("\n")[2] if part.startswith("IDL: ") else part for part in text.split("=" * 80 + "\n"))
    return {name: type_ for part in parts if part.strip() for name, type_ in get_types_from_idl(part).items()}


class _Schemas(dict):
    """Schemas by their number, those that are not ROS's without their text."""

    def __setitem__(self, number: int, schema) -> None:
        is_ros = schema.encoding in (*_DEFINITIONS, "omgidl")
        super().__setitem__(number, schema if is_ros else schema._replace(encoding="", data=""))


# rosbags takes every schema for text; those of protobuf are none.
storage_mcap.read_string = lambda file: storage_mcap.read_bytes(file).decode(errors="replace")


class _Mcap(storage_mcap.McapReader):
    """An MCAP file; without its index, as a killed recorder leaves it, up to where it is whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.schemas, self.notes = _Schemas(), []

    def _open(self) -> None:
        try:
            super()._open()
        except Exception:  # no index, or not made by ROS
            self._scan()

    def _scan(self) -> None:
        for kept in (self.schemas, self.channels, self.chunks, self.connections):
            kept.clear()
        size, end = self.path.stat().st_size, len(b"\x89MCAP0\r\n")
        self.bio.seek(-end, 2)
        if self.bio.read() != b"\x89MCAP0\r\n":
            self.notes.append(f"{self.path} was not closed, as when the recorder is killed: it is read up to where it is whole")
        self.data_start = end
        while end + 9 <= size:
            self.bio.seek(end + 1)
            following = end + 9 + int.from_bytes(self.bio.read(8), "little")
            if following > size:
                break
            end = following
        self.data_end = end
        self.meta_scan()
        counts = self.statistics.channel_message_counts
        self.connections = [c._replace(msgcount=counts.get(c.id, 0)) for c in self.connections]

    def messages(self, connections, start=None, stop=None) -> Iterator[tuple[Connection, int, bytes]]:
        return super().messages(connections) if self.chunks else self.messages_scan(connections)


class _Sqlite:
    """A sqlite3 file of rosbag2."""

    def __init__(self, path: Path) -> None:
        self.path, self.connections = path, []

    def open(self) -> None:
        uri = self.path.resolve().as_uri()
        try:
            self._open(f"{uri}?mode=ro")  # with what a killed recorder left in a journal
        except sqlite3.OperationalError:
            self._open(f"{uri}?immutable=1")  # in a folder that nobody may write to

    def _open(self, uri: str) -> None:
        self._database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            rows = self._database.execute("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
            known = {name: MessageDefinition(_DEFINITIONS[kind], text) for name, kind, text in rows if kind in _DEFINITIONS}
        except sqlite3.OperationalError:  # before ROS 2 Iron
            known = {}
        nothing = MessageDefinition(MessageDefinitionFormat.NONE, "")
        topics = self._database.execute(
            "SELECT topics.id, name, type, serialization_format, count(messages.id) FROM topics LEFT JOIN messages "
            "ON topics.id = messages.topic_id GROUP BY topics.id ORDER BY topics.id"
        )
        self.connections = [
            Connection(number, topic, name, known.get(name, nothing), "", count, ConnectionExtRosbag2(encoding, []), self)
            for number, topic, name, encoding, count in topics
        ]

    def close(self) -> None:
        self._database.close()

    def messages(self, connections: list[Connection]) -> Iterator[tuple[Connection, int, bytes]]:
        of = {connection.id: connection for connection in connections}
        marks = ",".join("?" * len(of))
        rows = self._database.execute(
            f"SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({marks}) ORDER BY timestamp", tuple(of)
        )
        return ((of[number], time_ns, data) for number, time_ns, data in rows)


class _CompressedFolder(DirectoryReader):
    """A folder whose files or messages are compressed."""

    STORAGE_PLUGINS = DirectoryReader.STORAGE_PLUGINS | {"mcap": _Mcap}
