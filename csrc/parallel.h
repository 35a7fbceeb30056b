// at::parallel_for, except in forked children: OpenMP's threads are not there any more, and its
// next parallel region would wait for them for ever. There the calling thread does all of the work.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>

namespace coxcompile {

bool is_forked_child();

template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const Body& body) {
  if (!is_forked_child()) {
    at::parallel_for(begin, end, grain_size, body);
  } else if (begin < end) {
    body(begin, end);
  }
}

}  // namespace coxcompile
