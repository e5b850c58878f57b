# SPDX-License-Identifier: GPL-2.0
"""The lengths and offsets that sentences of a document state.

Each number of 2 and more has to be a length or an offset that a pattern knows, and is
compared, or a number that is known to be something else.
"""

import re

# Does not match versions, hexadecimal numbers, and parts of names.
NUMBER = re.compile(r"(?<![\w.,/=*$-])\d+(?:,\d{3})*(?![\w.]*\w)")

# In the patterns, a space stands for any white space.

# Sentences with lengths and offsets, and the meanings of their numbers.
LENGTHS = [
    (r"The length of the request: (\d+) without a mask, (\d+) with one, (\d+) with a",
     ["request without mask", "request with mask", "request with flags"]),
    (r"The length of what follows: (\d+), (\d+), or (\d+) and more",
     ["op", "op and mask", "op, mask and flags"]),
    (r"(?:``len``|length) is neither (\d+) nor (\d+) nor at least (\d+)",
     ["op", "op and mask", "op, mask and flags"]),
    (r"it takes (\d+), (\d+), or (\d+) and more bytes for a request",
     ["op", "op and mask", "op, mask and flags"]),
    (r"its (\d+) bytes", ["event"]),
    (r"at offset (\d+) of the message", ["event"]),
    (r"message of \d+ bytes, or of (\d+) bytes with an identity", ["event with identity"]),
    (r"The message has (\d+) bytes: ``nlmsg_len`` is (\d+), and ``len`` in ``struct cn_msg`` is (\d+)",
     ["event with identity", "event with identity", "event and identity"]),
    (r"\.I nlmsg_len is (\d+) and \.I len of \.I struct cn_msg is (\d+)",
     ["event with identity", "event and identity"]),
    (r"The fields are (\d+) bits wide", ["bits of an identity's field"]),
    (r"one datagram of (\d+) bytes", ["event"]),
    (r"message of (\d+) bytes", ["event"]),
    (r"``PROC_CN_BATCH_SIZE``, (\d+) bytes", ["batch"]),
    (r"PROC_CN_BATCH_SIZE \((\d+)\) bytes", ["batch"]),
    (r"less than (\d+) bytes", ["batch"]),
    (r"struct proc_event is at offset (\d+)", ["offset of proc_event"]),
    (r"``event_data``, (\d+) bytes at offset (\d+)", ["event_data", "offset of event_data"]),
]

# Numbers that are no lengths and no offsets.
OTHERS = [
    r"\(\d\)",                          # sections of the manual
    r"^\s*\d+\.\s",                     # items of a list
    r"overflow id \(65534\)",
    r"1% of the memory, at 2 KiB each and 16 bytes for each possible CPU, but at least 256 and at most 65536",
    r"\.TH .*",
    r"forkstat [^`]*",                  # a command
    r"Since 2005",
    r"Debian 12 or 13", r"about 8 GB",
    r"32-bit programs",
    r"``nlmsg_len`` is more than 16,400",  # CONNECTOR_MAX_MSG_SIZE, and a header
    # The memory that the kernel counts in a receive buffer, as measured.
    r"On x86-64 these are 256 and 704 bytes, together 960",
    r"960 bytes on x86-64",
    r"default of 212,992 bytes holds 221",
    r"room for 5 events if the queue was empty",
    r"room for 49 events, which are 3,724 bytes",
    r"buffer of 212,992 bytes holds about 2,370 unread events of a burst, instead of 221",
    r"it holds about 2,370",
    r"it is 3 events if the queue was empty, and 32 events, which are 3,712 bytes, in a page",
    r"Such a page takes 4,352 bytes of the receive buffer",
    r"136 bytes for each of 32 events, or about 89 bytes for each of 49 without an identity",
    r"default receive buffer then holds about 1,500 events of a burst",
    r"With an identity, these are 221 and about 1,500",
    r"On 32-bit machines", r"on 32-bit machines",
    r"16 for each possible CPU",        # of the module's own memory, by the threat model
    r"after each 64 of them",           # ids that are looked at without a pause
]


def expected(structs, constants):
    """Each length and offset as the compiler has it, from the start of the message."""
    payload = constants["NLMSG_HDRLEN"] + structs["cn_msg"].size
    event, request, listen = structs["proc_event"], structs["proc_input"], structs["proc_listen"]
    identity = structs["proc_event_identity"]
    data = event.offset("event_data")
    return {
        "op": request.offset("event_type"),
        "op and mask": request.size,
        "op, mask and flags": listen.size,
        "request without mask": payload + request.offset("event_type"),
        "request with mask": payload + request.size,
        "request with flags": payload + listen.size,
        "event": payload + event.size,
        "event with identity": payload + event.size + identity.size,
        "event and identity": event.size + identity.size,
        "bits of an identity's field": 8 * max(field.size for field in identity.fields),
        "batch": constants["PROC_CN_BATCH_SIZE"],
        "offset of proc_event": payload,
        "event_data": event.size - data,
        "offset of event_data": payload + data,
    }


def blank(match):
    """Blank text with the same number of lines and characters."""
    return re.sub(r"[^\n]", " ", match[0])


def prose(name, text):
    """A document with its code replaced by blanks, so that line numbers stay the same."""
    if name.endswith(".rst"):
        # These are literal blocks, and the blocks of directives.
        return re.sub(r"(?<=::\n)(?:\n|  .*\n)+", blank, text)
    if name.endswith(".md"):
        return re.sub(r"^```.*?^```$", blank, text, flags=re.MULTILINE | re.DOTALL)
    if name.endswith((".c", ".rs")):
        comments = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
        kept, at = "", 0
        for comment in comments.finditer(text):
            kept += re.sub(r"[^\n]", " ", text[at:comment.start()]) + comment[0]
            at = comment.end()
        return kept + re.sub(r"[^\n]", " ", text[at:])
    return text


def found(pattern, text):
    return re.finditer(pattern.replace(" ", r"\s+"), text, re.MULTILINE)


def line_of(text, at):
    return text.count("\n", 0, at) + 1


def check(name, text, structs, constants, used):
    """The problems of the numbers in a document, with line numbers. Adds the patterns that matched
    to USED."""
    text = prose(name, text)
    lengths = expected(structs, constants)
    explained = set()
    for pattern, meanings in LENGTHS:
        for match in found(pattern, text):
            used.add(pattern)
            for group, meaning in enumerate(meanings, 1):
                explained |= set(range(*match.span(group)))
                if int(match[group]) != lengths[meaning]:
                    yield (line_of(text, match.start(group)),
                           f"{meaning}: {lengths[meaning]}, not {match[group]}")
    for pattern in OTHERS:
        for match in found(pattern, text):
            used.add(pattern)
            explained |= set(range(*match.span()))
    for number in NUMBER.finditer(text):
        if int(number[0].replace(",", "")) > 1 and number.start() not in explained:
            yield line_of(text, number.start()), f"{number[0]}: no pattern says what it is"


def unused(used):
    """The patterns that match nothing in any document."""
    return [pattern for pattern, _ in LENGTHS if pattern not in used] + \
           [pattern for pattern in OTHERS if pattern not in used]
