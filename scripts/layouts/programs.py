# SPDX-License-Identifier: GPL-2.0
"""The layouts that a program in Rust defines itself, because it includes no header."""

import re

SIZES = {"u16": 2, "u32": 4, "u64": 8}
# Fields that have other names in C.
NAMES = {"op": "mcast_op", "mask": "event_type", "data": "event_data"}

STRUCT = re.compile(r"^#\[repr\(C\)\]\n(?:pub )?struct (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^    (\w+): (?:\[(\w+); (\d+)\]|(\w+)),$", re.MULTILINE)


def parsed(text):
    """The structs of a program: fields as (name, offset, size, line), and size. All fields
    have the alignment of u32 or less, and there is no padding."""
    structs = {}
    for struct in STRUCT.finditer(text):
        fields, offset = [], 0
        for field in FIELD.finditer(struct[2]):
            kind, number = field[2] or field[4], int(field[3] or 1)
            inner, size = structs.get(kind, ([], SIZES.get(kind)))
            line = text.count("\n", 0, struct.start(2) + field.start()) + 1
            for name, at, length, _ in inner:
                fields.append((name, offset + at, length, line))
            if not inner:
                fields.append((field[1], offset, size * number, line))
            offset += size * number
        structs[struct[1]] = fields, offset
    return structs


def check(text, structs, constants):
    """The problems of the structs Headers, Listen and Message, with line numbers."""
    base, in_c = 0, {}
    for name in ("nlmsghdr", "cn_msg"):
        for field in structs[name].fields:
            in_c[field.path[-1]] = base + field.offset, field.size
        base += constants["NLMSG_HDRLEN"] if name == "nlmsghdr" else structs[name].size
    headers = dict(in_c)
    listen = {field.path[-1]: (field.offset, field.size) for field in structs["proc_listen"].fields}
    event = structs["proc_event"]
    message = {field.path[-1]: (base + field.offset, field.size)
               for field in event.fields if len(field.path) == 1}
    data = event.offset("event_data")
    message["event_data"] = base + data, event.size - data
    known = {
        "Headers": (headers, base),
        "Listen": (listen, structs["proc_listen"].size),
        "Message": (headers | message, base + event.size),
    }
    found = parsed(text)
    for name, (places, size) in known.items():
        if name not in found:
            yield 1, f"no struct {name}"
            continue
        fields, length = found[name]
        for field, at, width, line in fields:
            place = places.get(NAMES.get(field, field))
            if place != (at, width):
                yield line, f"{name}.{field} is at {at} with {width} bytes, in C (offset, size) {place}"
        if length != size:
            yield fields[-1][3], f"{name} has {length} bytes, {size} in C"
