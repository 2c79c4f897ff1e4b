//# Args: 512
//# Scenario: go-on, restart
//# Checkpoints: 50
//# Where: host
// As threads.c, with so many that the guest's one CPU is too slow for them.
#include "threads.c"
