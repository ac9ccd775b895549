#include "warp.h"

#include <cstring>

namespace cuda_on_cpu {
namespace {

constexpr int matrix_rows = 8;

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: threads 8 m to 8 m + 7 give the rows of matrix m, of which thread t gets
// elements 2 (t % 4) and the next of row t / 4.
void load(WarpOperation* const* operations) {
  for (int thread = 0; thread < int(warp_size); ++thread)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto row = static_cast<const unsigned*>(operations[matrix * matrix_rows + thread / 4]->row);
      operations[thread]->fragments[matrix] = row[thread % 4];
    }
}

float element(unsigned pair, int which) {
  _Float16 halves[2];
  memcpy(halves, &pair, sizeof halves);
  return halves[which];
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32. With group = t / 4 and place = t % 4, thread t holds
// left [16, 16]   register r: row group + 8 (r % 2), columns 2 place + 8 (r / 2) and the next
// right [16, 8]   register r: rows 2 place + 8 r and the next, column group
// sums [16, 8]    number i: row group + 8 (i / 2), column 2 place + i % 2
void multiply(WarpOperation* const* operations) {
  float left[16][16], right[16][8];
  for (int thread = 0; thread < int(warp_size); ++thread) {
    const int group = thread / 4, place = thread % 4;
    for (int i = 0; i < 2; ++i) {
      for (int r = 0; r < 4; ++r)
        left[group + 8 * (r % 2)][2 * place + 8 * (r / 2) + i] = element(operations[thread]->left[r], i);
      for (int r = 0; r < 2; ++r) right[2 * place + 8 * r + i][group] = element(operations[thread]->right[r], i);
    }
  }
  for (int thread = 0; thread < int(warp_size); ++thread)
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 4 + 8 * (i / 2), column = 2 * (thread % 4) + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
      operations[thread]->sums[i] += sum;
    }
}

void shuffle(WarpOperation* const* operations) {
  unsigned words[warp_size];
  for (size_t thread = 0; thread < warp_size; ++thread) words[thread] = *operations[thread]->word;
  for (size_t thread = 0; thread < warp_size; ++thread) *operations[thread]->word = words[operations[thread]->source];
}

}  // namespace

WarpOperation WarpOperation::load(unsigned* fragments, const void* row) {
  WarpOperation operation = {load_kind};
  operation.fragments = fragments;
  operation.row = row;
  return operation;
}

WarpOperation WarpOperation::multiply(float* sums, const unsigned* left, const unsigned* right) {
  WarpOperation operation = {multiply_kind};
  operation.sums = sums;
  operation.left = left;
  operation.right = right;
  return operation;
}

WarpOperation WarpOperation::shuffle(unsigned* word, unsigned source) {
  WarpOperation operation = {shuffle_kind};
  operation.word = word;
  operation.source = source;
  return operation;
}

void perform(WarpOperation* const* operations) {
  switch (operations[0]->kind) {
    case WarpOperation::load_kind:
      return load(operations);
    case WarpOperation::multiply_kind:
      return multiply(operations);
    case WarpOperation::shuffle_kind:
      return shuffle(operations);
  }
}

void AsyncCopies::begin(bool early) {
  copies_.clear();
  groups_ = 0;
  early_ = early;
}

void AsyncCopies::add(void* to, const void* from) {
  const Copy copy{to, from, groups_};
  early_ ? make(copy) : copies_.push_back(copy);
}

void AsyncCopies::commit() { ++groups_; }

void AsyncCopies::wait(int pending) {
  size_t made = 0;
  for (; made < copies_.size() && copies_[made].group < groups_ - pending; ++made) make(copies_[made]);
  copies_.erase(copies_.begin(), copies_.begin() + made);
}

void AsyncCopies::make(const Copy& copy) {
  copy.from ? memcpy(copy.to, copy.from, async_copy_size) : memset(copy.to, 0, async_copy_size);
}

}  // namespace cuda_on_cpu
