#include "model.h"

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "cpu.h"
#include "error.h"

namespace ffi = tvm::ffi;

namespace {

constexpr int kAlignment = 64;      // of tensors
constexpr int kPooledAllocator = 2;  // of TVM's virtual machine
using Clock = std::chrono::steady_clock;

constexpr DLDevice kCpu{kDLCPU, 0};
constexpr DLDataType kFloat32{kDLFloat, 32, 1}, kInt32{kDLInt, 32, 1};

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

// What in memory is somebody else's.
struct Lent {
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

struct Allocated {
  void AllocData(DLTensor* tensor) {
    const size_t size = (ffi::GetDataSize(*tensor) + kAlignment - 1) / kAlignment * kAlignment;
    tensor->data = std::aligned_alloc(kAlignment, std::max<size_t>(size, kAlignment));
    if (!tensor->data) throw UserError("There is not enough memory for this; free some.");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

ffi::Tensor lend(const void* data, const std::vector<int64_t>& shape, DLDataType type) {
  return ffi::Tensor::FromNDAlloc(Lent{const_cast<void*>(data)}, ffi::Shape(shape), type, kCpu);
}

ffi::Tensor allocate(const std::vector<int64_t>& shape, DLDataType type) {
  return ffi::Tensor::FromNDAlloc(Allocated{}, ffi::Shape(shape), type, kCpu);
}

ffi::Tensor integers(std::initializer_list<int32_t> values) {
  ffi::Tensor tensor = allocate({int64_t(values.size())}, kInt32);
  std::copy(values.begin(), values.end(), static_cast<int32_t*>(tensor.data_ptr()));
  return tensor;
}

DLDataType type_of(const Json& name) { return ffi::StringToDLDataType(ffi::String(name.text())); }

std::vector<int64_t> shape_of(const Json& extents) {
  std::vector<int64_t> shape;
  for (const Json& extent : extents.list()) shape.push_back(extent.integer());
  return shape;
}

// The first of the levels, best first, whose features this CPU has, or the one that an environment variable names.
Json level_for_cpu(const Json& index) {
  const char* wanted = std::getenv("RWKV_MLC_CPU");
  const std::vector<Json> levels = index.at("levels").list();
  std::string names;
  for (const Json& level : levels) {
    const std::string name = level.at("name").text();
    if (wanted ? name == wanted : has_features(level.at("features"))) return level;
    names += (names.empty() ? "" : ", ") + name;
  }
  throw UserError(wanted ? std::string("RWKV_MLC_CPU is ") + wanted + " and should be one of " + names + "."
                         : "This program has code for " + names + ", and this CPU is none of them.");
}

}  // namespace

struct Model::Spec {
  std::string name;
  std::vector<int64_t> shape;
  float initial;
  std::string_view given;  // bytes of the pack that stand for it
};

struct Model::Library {
  std::optional<ffi::Module> machine;
  ffi::Function prefill, decode, sample;
  ffi::Array<ffi::Any> params;
  ffi::Tensor ends_of_one, slots, padding;

  ffi::Function function(const char* name) const {
    const auto found = (*machine)->GetFunction(name);
    if (!found) throw UserError(std::string("The library of this program has no ") + name + "; package the model again.");
    return *found;
  }
};

Model::Model(const Pack& pack)
    : vocab_size_(pack.index().at("chat_config").at("model_config").at("vocab_size").integer()),
      tokenizer_(pack.bytes(pack.index().at("vocabulary")), vocab_size_),
      library_(std::make_unique<Library>()) {
  const std::string foreign = pack.path() + " belongs to another program than this one; put its own beside it.";
  const Json level = level_for_cpu(pack.index());
  level_ = level.at("name").text();
  const auto executable = ffi::Function::GetGlobalRequired("ffi.SystemLib")(level.at("prefix").text()).cast<ffi::Module>();
  const auto load = executable->GetFunction("vm_load_executable");
  if (!load) throw UserError(foreign);
  Library& library = *library_;
  library.machine = (*load)().cast<ffi::Module>();
  library.function("vm_initialization")(int(kDLCPU), 0, kPooledAllocator);
  const Json metadata =
      Json::parse(library.function("_metadata")().cast<ffi::String>().operator std::string(), "the library's metadata");
  library.prefill = library.function("prefill");
  library.decode = library.function("decode");
  library.sample = library.function("sample");

  std::vector<ffi::Any> params;
  const std::vector<Json> stored = pack.index().at("tensors").list(), taken = metadata.at("params").list();
  if (stored.size() != taken.size()) throw UserError(foreign);
  for (size_t i = 0; i < taken.size(); ++i) {
    const std::vector<int64_t> shape = shape_of(taken[i].at("shape"));
    const DLDataType type = type_of(taken[i].at("dtype"));
    const std::string_view bytes = pack.bytes(stored[i]);
    size_t size = (type.bits * type.lanes + 7) / 8;
    for (const int64_t extent : shape) size *= extent;
    if (stored[i].at("name").text() != taken[i].at("name").text() || bytes.size() != size ||
        stored[i].at("layout").text() != taken[i].at("layout").text() ||
        reinterpret_cast<uintptr_t>(bytes.data()) % kAlignment) {
      throw UserError(foreign);
    }
    params.push_back(lend(bytes.data(), shape, type));
  }
  library.params = ffi::Array<ffi::Any>(params.begin(), params.end());

  const Json given = pack.index().at("initial_state");
  for (const Json& state : metadata.at("states").list()) {
    Spec spec;
    spec.name = "blocks." + std::to_string(state.at("layer").integer()) + "." + state.at("role").text();
    spec.shape = shape_of(state.at("shape"));
    spec.shape.insert(spec.shape.begin(), 1);
    spec.initial = float(state.at("initial").number());
    if (given.has(spec.name)) spec.given = pack.bytes(given.at(spec.name));
    specs_.push_back(std::move(spec));
  }
  const Json config = metadata.at("model_config"), prefill = metadata.at("functions").at("prefill");
  const int64_t chunk = pack.index().at("chat_config").at("prefill_chunk_size").integer();
  const bool planned = prefill.has("planned") && prefill.at("planned").has("T");
  prefill_chunk_ = planned ? std::min(chunk, prefill.at("planned").at("T").integer()) : chunk;
  context_length_ = pack.index().at("chat_config").at("model_config").at("context_length").integer();

  library.ends_of_one = integers({1});
  library.slots = integers({0});
  std::vector<int32_t> padding;
  const std::vector<int> ends = [&] {
    std::vector<int> ids;
    for (const Json& id : pack.index().at("end_ids").list()) ids.push_back(int(id.integer()));
    return ids;
  }();
  for (const int id : tokenizer_.padding()) {
    if (std::find(ends.begin(), ends.end(), id) == ends.end()) padding.push_back(id);
  }
  if (padding.empty()) padding.push_back(-1);
  library.padding = allocate({int64_t(padding.size())}, kInt32);
  std::copy(padding.begin(), padding.end(), static_cast<int32_t*>(library.padding.data_ptr()));
}

Model::~Model() = default;

State Model::allocated() const {
  State state;
  auto tensors = std::make_shared<ffi::Array<ffi::Any>>();
  for (const Spec& spec : specs_) {
    ffi::Tensor tensor = allocate(spec.shape, kFloat32);
    state.parts.push_back({spec.name, spec.shape, {static_cast<float*>(tensor.data_ptr()), size_t(tensor.numel())}});
    tensors->push_back(tensor);
  }
  state.tensors = tensors;
  return state;
}

State Model::new_state() const {
  State state = allocated();
  for (size_t i = 0; i < specs_.size(); ++i) {
    const std::span<float> values = state.parts[i].values;
    std::fill(values.begin(), values.end(), specs_[i].initial);
    if (specs_[i].given.size() == values.size_bytes()) {
      std::memcpy(values.data(), specs_[i].given.data(), values.size_bytes());
    }
  }
  return state;
}

State Model::copy(const State& state) const {
  State copied = allocated();
  for (size_t i = 0; i < state.parts.size(); ++i) {
    std::copy(state.parts[i].values.begin(), state.parts[i].values.end(), copied.parts[i].values.begin());
  }
  copied.last = state.last;
  copied.read = state.read;
  copied.length = state.length;
  return copied;
}

Logits Model::logits(std::span<const float> values) const {
  auto tensor = std::make_shared<ffi::Tensor>(allocate({1, 1, vocab_size_}, kFloat32));
  float* data = static_cast<float*>(tensor->data_ptr());
  std::copy(values.begin(), values.end(), data);
  return {tensor, {data, size_t(vocab_size_)}};
}

void Model::read(std::span<const int> tokens, State& state) {
  for (const int token : tokens) {
    if (token < 0 || token >= vocab_size_) throw UserError("Token " + std::to_string(token) + " is none of this model's.");
  }
  const Clock::time_point began = Clock::now();
  const int64_t count = tokens.size();
  ffi::Tensor ids = allocate({count}, kInt32);
  std::copy(tokens.begin(), tokens.end(), static_cast<int32_t*>(ids.data_ptr()));
  const auto& states = *static_cast<const ffi::Array<ffi::Any>*>(state.tensors.get());
  const ffi::Tensor ends = count == 1 ? library_->ends_of_one : integers({int32_t(count)});
  state.read = true;
  state.last.reset();
  state.length += count;
  const ffi::Function& function = count == 1 ? library_->decode : library_->prefill;
  auto tensor = std::make_shared<ffi::Tensor>(function(ids, ends, library_->slots, states, library_->params).cast<ffi::Tensor>());
  const std::span<const float> values{static_cast<const float*>(tensor->data_ptr()), size_t(vocab_size_)};
  state.last = Ending{{tensor, values}, {}};
  (count == 1 ? stats.decoded : stats.prefilled) += count;
  (count == 1 ? stats.decode_seconds : stats.prefill_seconds) += seconds_since(began);
}

int Model::choose(const Logits& logits, Sampler& sampler) {
  const Clock::time_point began = Clock::now();
  std::vector<Penalty> penalties{{0, 0}};  // no tensor is empty
  const Request request = sampler.request(penalties);
  ffi::Tensor requests = allocate({1, sizeof request / 4}, kInt32);
  std::memcpy(requests.data_ptr(), &request, sizeof request);
  ffi::Tensor amounts = allocate({int64_t(penalties.size()), 2}, kInt32);
  std::memcpy(amounts.data_ptr(), penalties.data(), penalties.size() * sizeof(Penalty));
  const auto& tensor = *static_cast<const ffi::Tensor*>(logits.owner.get());
  const auto chosen = library_->sample(tensor, requests, amounts, library_->padding).cast<ffi::Tensor>();
  const int token = *static_cast<const int32_t*>(chosen.data_ptr());
  if (token < 0) {
    throw UserError("The model's logits are not finite, as happens where 16-bit numbers overflow; build it in a scheme of "
                    "32-bit ones, such as q4f32_1.");
  }
  sampler.count(token);
  stats.decode_seconds += seconds_since(began);
  return token;
}

void Model::free_memory() { ffi::Function::GetGlobalRequired("vm.builtin.memory_manager.clear")(); }
