"""No test fails because the machine is busy with something else, or for how the tests were started."""

import signal

from hypothesis import HealthCheck, settings

# nohup, and a shell's &, start with these ignored: so would be the programs that tests start, and interrupt.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, lambda *_: None),  # of no effect here still
    (signal.SIGHUP, lambda *_: None),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

settings.register_profile("mlbox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mlbox")
