"""Runs pyverbs' own tests, one module at a time, and prints a line for each: its name, then ok, skip, fail or error with the reason.

The tests are of a newer rdma-core than the pyverbs that Debian has: a name that this pyverbs lacks stands for something that
skips whoever uses it, natively and under slackwater alike.
usage: suite.py FOLDER [NAME-PART...], where FOLDER/tests is rdma-core's
"""
import builtins
import importlib
import os
import re
import signal
import sys
import types
import unittest

folder = sys.argv[1]
sys.path.insert(0, os.path.join(folder, 'tests'))  # not the folder: its pyverbs is not built
package = types.ModuleType('tests')  # not its own __init__, which imports every module and stops at the first that fails
package.__path__ = [os.path.join(folder, 'tests')]
sys.modules['tests'] = package
LIMIT = 60


class Missing:
    def __init__(self, *_, **__):
        raise unittest.SkipTest('not in this pyverbs')

    def __class_getitem__(cls, _):
        return cls


real_import = builtins.__import__


def patient(name, globals=None, locals=None, fromlist=(), level=0):
    if not name.startswith('pyverbs'):
        return real_import(name, globals, locals, fromlist, level)
    try:
        module = real_import(name, globals, locals, fromlist, level)
    except ModuleNotFoundError as e:
        module = sys.modules[e.name] = types.ModuleType(e.name)
    for lacks in [n for n in fromlist or () if n != '*' and not hasattr(module, n)]:
        setattr(module, lacks, type(lacks, (Missing,), {}))
    return module


builtins.__import__ = patient
import pyverbs.enums  # noqa: E402 (only after __import__ is ours)
pyverbs.enums.__getattr__ = lambda name: 0 if name.startswith('IBV_') else getattr(None, name)


def flat(suite):
    for t in suite:
        if isinstance(t, unittest.TestSuite):
            yield from flat(t)
        else:
            yield t


def late(*_):
    raise TimeoutError(f'no end within {LIMIT} s')


def outcome(test):
    result = unittest.TestResult()
    signal.alarm(LIMIT)
    try:
        test.run(result)
    except BaseException as e:
        return 'error', repr(e)
    finally:
        signal.alarm(0)
    for kind, found in (('error', result.errors), ('fail', result.failures), ('skip', result.skipped)):
        if found:
            return kind, found[0][1].strip().splitlines()[-1]
    return 'ok', ''


signal.signal(signal.SIGALRM, late)
names = sorted(f[:-3] for f in os.listdir(package.__path__[0]) if re.match(r'test_(?!mlx5|efa|irdma|cuda|.*cuda|rdmacm)\w+\.py$', f))
wanted = sys.argv[2:]
sys.argv = sys.argv[:1]
from args_parser import parser  # noqa: E402 (of the suite's folder, which is in the path only now)
parser.parse_args()
total = 0
for name in names:
    if wanted and not any(w in name for w in wanted):
        continue
    try:
        module = importlib.import_module('tests.' + name)
    except BaseException as e:
        print(f'{name}: import {e!r}', flush=True)
        continue
    for test in flat(unittest.defaultTestLoader.loadTestsFromModule(module)):
        kind, why = outcome(test)
        total += 1
        print(f'{test.id()}: {kind} {why}', flush=True)
print(f'END {total}', flush=True)
