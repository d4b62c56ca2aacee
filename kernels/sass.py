"""What a cubin's machine code holds: disassembly by nvdisasm, loops, instruction counts.

A probe is believed only if its hot loop holds the instruction it is named after, as often as its source says: the
compiler merges, hoists and emulates (an ``mma.sync`` s4 compiles for an H100, and becomes a call into 90 LOP3). A
disassembler may also lack an instruction and print nothing for it, so addresses must be continuous.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sysconfig
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from apex4_probe.errors import ApexError
from apex4_probe.kernels import disk_cache

INSTRUCTION_BYTES = 16  # Volta and later
# Of .nv.info: attributes, and the form whose payload follows it.
_EIATTR_REGCOUNT, _EIATTR_FRAME_SIZE, _EIFMT_SVAL = 0x2F, 0x11, 4

_SECTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\S+):$")
_INSTRUCTION = re.compile(r"^/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?)\s*;$")
_TARGET = re.compile(r"`\((\S+)\)")


class DisassemblyError(ApexError):
    """No disassembler, or one that does not understand this machine code."""


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str  # "@!P0", or ""
    opcode: str  # with its modifiers: "IMMA.16832.S8.S8"
    operands: str


@dataclass(frozen=True)
class Listing:
    """One kernel's machine code. ``labels``: name to the index of the instruction that follows."""

    kernel: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]

    def loops(self) -> tuple[tuple[Instruction, ...], ...]:
        """Bodies of all loops, shortest first. A branch to itself is the padding after EXIT, no loop."""
        bodies = []
        for end, instruction in enumerate(self.instructions):
            start = self._branch_target(instruction)
            if start is not None and start < end:
                bodies.append(self.instructions[start : end + 1])
        return tuple(sorted(bodies, key=len))

    def hot_loop(self, opcode: str) -> tuple[Instruction, ...]:
        """The innermost loop that holds an opcode matching the regular expression; without one, the longest innermost
        loop (emulation: the named instruction is gone). Empty when the kernel has no loop."""
        loops = self.loops()
        pattern = re.compile(opcode)
        for body in loops:
            if any(pattern.match(name) for name in self._executed(body)):
                return body
        innermost = [body for body in loops if not any(set(other) < set(body) for other in loops)]
        return max(innermost, key=len, default=())

    def count(self, body: tuple[Instruction, ...]) -> Counter[str]:
        """Instructions executed in one pass over ``body``, those of called subroutines included."""
        return Counter(self._executed(body))

    def has_local_memory(self) -> bool:
        """Spills: loads or stores of local memory anywhere in the kernel."""
        return any(i.opcode.startswith(("LDL", "STL")) for i in self.instructions)

    def _executed(self, body: tuple[Instruction, ...]) -> list[str]:
        executed: list[str] = []
        for instruction in body:
            executed.append(instruction.opcode)
            if instruction.opcode.startswith("CALL") and (match := _TARGET.search(instruction.operands)):
                start = self.labels[match[1]]
                rest = self.instructions[start:]
                end = next((i for i, callee in enumerate(rest) if callee.opcode.startswith("RET")), -1)
                executed += self._executed(rest[: end + 1])
        return executed

    def _branch_target(self, instruction: Instruction) -> int | None:
        if not instruction.opcode.startswith("BRA"):
            return None
        match = _TARGET.search(instruction.operands)
        return self.labels.get(match[1]) if match else None


def matching(counts: Mapping[str, int], opcode: str) -> int:
    """How many of ``counts`` match the regular expression ``opcode`` from their beginning."""
    pattern = re.compile(opcode)
    return sum(n for name, n in counts.items() if pattern.match(name))


@cache
def disassembler() -> tuple[Path, str]:
    """(path of nvdisasm, its version). The pip package's is preferred: it is at least as new as the NVRTC beside it.

    Raises DisassemblyError when there is none.
    """
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/**/bin/nvdisasm"))
    on_path = shutil.which("nvdisasm") or shutil.which("/usr/local/cuda/bin/nvdisasm")
    for path in [*packaged, *([Path(on_path)] if on_path else [])]:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if match := re.search(r"release [\d.]+, V([\d.]+)", answer.stdout):
            return path, match[1]
    raise DisassemblyError(
        "no nvdisasm found, so machine code cannot be verified; install it with: pip install nvidia-cuda-nvdisasm"
    )


def disassemble(image: bytes) -> dict[str, Listing]:
    """Listings of all kernels of a cubin by name. Raises DisassemblyError. The text is kept on disk:
    nvdisasm takes longer than the compiler."""
    path, version = disassembler()
    key = disk_cache.key_of(image, version)
    if (kept := disk_cache.read("sass", key)) is not None:
        return parse(zlib.decompress(kept).decode())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        answer = subprocess.run([path, "-c", file.name], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"])[-1]
        raise DisassemblyError(f"nvdisasm {version} cannot read this cubin: {reason}")
    listings = parse(answer.stdout)
    disk_cache.write("sass", key, zlib.compress(answer.stdout.encode()))
    return listings


def registers(image: bytes) -> int:
    """A thread's in a cubin, the most of its kernels."""
    return _most(image, _EIATTR_REGCOUNT)


def local_bytes(image: bytes) -> int:
    """A thread's stack frame in local memory, spills included, the most of a cubin's kernels."""
    return _most(image, _EIATTR_FRAME_SIZE)


def static_shared_bytes(image: bytes, kernel: str) -> int:
    """Shared memory that ``kernel`` declares with a size, beside what its launch asks for."""
    return sum(size for name, _, size in _sections(image) if name == f".nv.shared.{kernel}")


def _most(image: bytes, wanted: int) -> int:
    """The largest value of an attribute (symbol, value) in the section .nv.info; 0 where there is none."""
    at, length = next((offset, size) for name, offset, size in _sections(image) if name == ".nv.info")
    end, found = at + length, [0]
    while at < end:
        form, attribute, payload = struct.unpack_from("<BBH", image, at)
        if attribute == wanted:
            found.append(struct.unpack_from("<II", image, at + 4)[1])  # (symbol, value)
        at += 4 + (payload if form == _EIFMT_SVAL else 0)
    return max(found)


def _sections(image: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every section of an ELF64 file."""
    table, (size, count, names) = struct.unpack_from("<Q", image, 40)[0], struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + i * size) for i in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        begin = strings + name
        yield image[begin : image.index(b"\0", begin)].decode(), offset, length


def disassemble_all(images: Sequence[bytes]) -> None:
    """Fill the disk cache with many cubins' machine code, a process a core. Without a disassembler nothing happens."""
    try:
        disassembler()
    except DisassemblyError:
        return
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(disassemble, images))


def parse(text: str) -> dict[str, Listing]:
    """nvdisasm's ``-c`` output as listings. Raises DisassemblyError where addresses are not continuous."""
    listings: dict[str, Listing] = {}
    kernel, instructions, labels = "", list[Instruction](), dict[str, int]()
    for line in (raw.strip() for raw in text.splitlines()):
        if match := _SECTION.match(line):
            kernel, instructions, labels = match[1], [], {}
        elif kernel and (match := _INSTRUCTION.match(line)):
            address = int(match[1], 16)
            if address != INSTRUCTION_BYTES * len(instructions):
                raise DisassemblyError(
                    f"nvdisasm printed no instruction at {INSTRUCTION_BYTES * len(instructions):#x} of {kernel}: "
                    "it does not know one of this architecture; install a newer nvidia-cuda-nvdisasm"
                )
            instructions.append(Instruction(address, match[2] or "", match[3], match[4]))
            listings[kernel] = Listing(kernel, tuple(instructions), labels)
        elif kernel and (match := _LABEL.match(line)):
            labels[match[1]] = len(instructions)
    return {name: Listing(name, listing.instructions, dict(listing.labels)) for name, listing in listings.items()}
