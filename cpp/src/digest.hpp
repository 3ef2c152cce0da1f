// The digest inside a spec, which shows that a file was damaged or edited. It covers the meaning of
// the JSON and not its bytes. The C++ twin of destseg_deploy/spec/digest.py.
#pragma once

#include <string>

#include "json.hpp"

namespace destseg_core {

struct Digest {
  std::string rest, threshold, both;
};

// Of a spec's entry "digest", whose three texts were checked before.
Digest read_digest(const Json &entry);
// Of a spec as it was read.
Digest digest_of(const Json &data);
// Whether a digest was not damaged itself.
bool is_whole(const Digest &digest);

// A value as bytes: equal for equal values, different for different ones.
std::string encode(const Json &value);

}  // namespace destseg_core
