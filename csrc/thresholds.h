// From how many tokens of an expert on which loop multiplies its weights, in bfloat16: values of
// the process, which `coxmoe calibrate` measures and Python sets. They choose between loops that
// there are; whether a processor has one, columns.h and panels.h know.
#pragma once

#include <cstdint>

namespace coxcompile {

// The least tokens as columns; 0: never.
int64_t column_threshold();

// The least tokens that a last vector of columns is filled up with zeros for; from 16 on: for none.
int64_t last_vector_threshold();

// The least tokens by panels, with AMX or without; 0: never.
int64_t panel_threshold(bool amx);

}  // namespace coxcompile
