// Enumerations from C callers, which may hold any number; C++ may not even read such a value.
#pragma once

#include <cstring>

namespace semisparse {

template <typename Enum>
int number_of(const Enum& value) {
  static_assert(sizeof(Enum) == sizeof(int), "the C API's enumerations are ints");
  int number;
  std::memcpy(&number, &value, sizeof(number));
  return number;
}

}  // namespace semisparse
