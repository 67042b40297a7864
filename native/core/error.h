// The one exception of the core; the C API and the ONNX Runtime adapter turn it into a status.
#pragma once

#include <stdexcept>
#include <string>

#include "semisparse.h"

namespace semisparse {

class Error : public std::runtime_error {
 public:
  Error(semisparse_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  semisparse_status status() const { return status_; }

 private:
  semisparse_status status_;
};

[[noreturn]] inline void invalid(const std::string& message) {
  throw Error(SEMISPARSE_INVALID_ARGUMENT, message);
}

}  // namespace semisparse
