//# Preload: /usr/lib/x86_64-linux-gnu/libjemalloc.so.2
//# Needs: file:/usr/lib/x86_64-linux-gnu/libjemalloc.so.2
//# Scenario: go-on, restart
// The program's allocator is jemalloc, preloaded as a user would.
#include "allocator.h"
