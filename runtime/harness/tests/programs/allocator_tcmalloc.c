//# Preload: /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4
//# Needs: file:/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4
//# Scenario: go-on, restart
// The program's allocator is tcmalloc, preloaded as a user would.
#include "allocator.h"
