// The weights, the vocabulary and what is to be known of both, at the end of this executable or in a file beside it.
//
//   what is before it, up to a multiple of 4096 bytes
//   tensors, each at a multiple of 64 bytes from there; 4096 bytes of zeros
//   the vocabulary: for each token its id, its length and its bytes, the numbers of 32 bits, in the order of the bytes
//   the index, JSON
//   "rwkv_mlc pack 1\n", and of 64 bits: the size of all, where the index begins in it, and its size
//
// rwkv_mlc/packaging/pack.py writes it.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "json.h"

class Pack {
 public:
  // That of this program: at its end, or in "<program>.weights". Raises UserError where there is none, and for one that was
  // cut.
  static Pack open();
  // That at the end of a file.
  static Pack open(const std::string& path);

  const Json& index() const { return index_; }
  const std::string& path() const { return path_; }
  // Bytes that an object of "offset" and "nbytes" names. Raises UserError for those that are not there.
  std::string_view bytes(const Json& place) const;

 private:
  Pack(std::string path, std::string_view mapped, Json index)
      : path_(std::move(path)), mapped_(mapped), index_(std::move(index)) {}

  std::string path_;
  std::string_view mapped_;  // for as long as the process runs
  Json index_;
};
