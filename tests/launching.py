"""Starting commands of several processes, and programs that stand in for those of a cluster."""

import os
import socket
import subprocess
import time

TPU = ["--name", "mine", "--zone", "us-a", "--type", "v5litepod-16", "--bucket", "gs://ours"]
TRAIN = ["--", "--config", "a b.py"]


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def wait_until(when, processes, seconds=300):
    """Wait for something, while all of these run and not for longer; whether it came."""
    until = time.monotonic() + seconds
    while not (came := when()) and time.monotonic() < until:
        if any(process.poll() is not None for process in processes):
            return when()
        time.sleep(0.005)
    return came


def stub(folder, name, script="exit 0"):
    """A program that writes its arguments to ``calls`` beside it, and then does ``script``."""
    program = folder / name
    program.write_text(
        f'#!/usr/bin/env bash\nprintf "%q " {name} "$@" >>{folder}/calls; echo >>{folder}/calls\n'
        f"{script}\n"
    )
    program.chmod(0o755)


def programs_in(folder):
    """Put programs there that only note what they are asked; returns the folder."""
    for name in ("gcloud", "srun", "scontrol", "python"):
        stub(folder, name)
    return folder


def launched(folder, script, *arguments, **environment):
    """What comes of a script that finds the programs in ``folder`` first."""
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", script, *arguments],
        env={**os.environ, "PATH": path, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def calls(folder):
    """What was called, a line for each."""
    file = folder / "calls"
    return [line.strip() for line in file.read_text().splitlines()] if file.exists() else []
