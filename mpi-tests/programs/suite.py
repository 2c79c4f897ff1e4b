"""Runs mpi4py's own tests. Each rank appends a line for each to the file `outcomes` in the current folder: the rank, the
test, and ok, skip, fail or error; and `end` when it has gone through all.

usage: suite.py FOLDER [not NAME...]: FOLDER/test is mpi4py's; modules named so are left out
"""
import os
import re
import sys
import unittest

folder = os.path.join(sys.argv[1], 'test')
sys.path.insert(0, folder)
for absent in 'cupy', 'numba':  # as its own runner has it
    sys.modules[absent] = None
from mpi4py import MPI  # noqa: E402

rank = MPI.COMM_WORLD.Get_rank()
outcomes = os.open('outcomes', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def note(test, how):
    os.write(outcomes, f'{rank} {test.id()} {how}\n'.encode())


class Result(unittest.TestResult):
    def addSuccess(self, test):
        note(test, 'ok')

    def addSkip(self, test, reason):
        note(test, 'skip')

    def addFailure(self, test, err):
        note(test, 'fail')
        print(rank, test.id(), self._exc_info_to_string(err, test), flush=True)

    def addError(self, test, err):
        note(test, 'error')
        print(rank, test.id(), self._exc_info_to_string(err, test), flush=True)


names = sorted(f[:-3] for f in os.listdir(folder) if re.match(r'test_\w+\.py$', f))
names = [name for name in names if name not in sys.argv[3:]]
sys.argv = sys.argv[:1]
unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromName(name) for name in names).run(Result())
os.write(outcomes, f'{rank} end\n'.encode())
