// A device whose memory is the CPU's but which torch holds for another one, so that machines without an accelerator
// can show that no step mixes tensors of two devices. Every operator runs on the CPU and is copied back; one that gets
// a CPU tensor with dimensions among tensors of the device fails, as it would on a GPU.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

namespace {

using at::IntArrayRef;
using at::Tensor;
using std::nullopt;
using std::optional;

constexpr auto kind = c10::DeviceType::PrivateUse1;
const c10::Device device(kind, 0);
const c10::Stream stream(c10::Stream::DEFAULT, device);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kind; }
  c10::Device exchangeDevice(c10::Device) const override { return device; }
  c10::Device getDevice() const override { return device; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream; }
  c10::Stream getDefaultStream(c10::Device) const override { return stream; }
  c10::Stream getNewStream(c10::Device, int) const override { return stream; }
  c10::Stream exchangeStream(c10::Stream before) const override { return before; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<c10::Stream*>(&stream);
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void synchronizeEvent(void*) const override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Memory final : at::Allocator {
  static void give_back(void* place) { c10::free_cpu(place); }
  at::DataPtr allocate(size_t bytes) override {
    void* place = c10::alloc_cpu(bytes);
    return {place, place, &give_back, device};
  }
  at::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(kind, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
};
const bool has_hooks = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

Tensor empty(IntArrayRef size, optional<at::ScalarType> type, optional<at::Layout>, optional<at::Device>,
             optional<bool>, optional<at::MemoryFormat> format) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(type), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<at::ScalarType> type, optional<at::Layout>,
                     optional<at::Device>, optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory, keys, c10::dtype_or_default(type));
}

// The same memory as a CPU tensor.
Tensor on_cpu(const Tensor& tensor) {
  if (tensor.device().type() != kind) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (to.sizes() != from.sizes()) at::native::resize_impl_cpu_(to.unsafeGetTensorImpl(), from.sizes(), nullopt);
  return copy_from(from, to, false);
}

const Tensor& resize(const Tensor& tensor, c10::SymIntArrayRef size, optional<at::MemoryFormat>) {
  at::native::resize_impl_cpu_(tensor.unsafeGetTensorImpl(), C10_AS_INTARRAYREF_SLOW(size), nullopt);
  return tensor;
}

Tensor as_strided(const Tensor& tensor, IntArrayRef size, IntArrayRef stride, optional<int64_t> offset) {
  return at::cpu::as_strided(tensor, size, stride, offset);
}

Tensor reshape_alias(const Tensor& tensor, IntArrayRef size, IntArrayRef stride) {
  return at::cpu::as_strided(tensor, size, stride, nullopt);
}

Tensor view(const Tensor& tensor, IntArrayRef size) { return at::native::view(tensor, size); }

Tensor& set_to_storage(Tensor& tensor, at::Storage storage, int64_t offset, IntArrayRef size, IntArrayRef stride) {
  tensor.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return tensor;
}

Tensor& set_to_tensor(Tensor& tensor, const Tensor& other) {
  return set_to_storage(tensor, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

at::Scalar item(const Tensor& tensor) { return on_cpu(tensor).item(); }

void fallback(const c10::OperatorHandle& operation, c10::Stack* stack) {
  bool has_device = false;
  std::ostringstream strangers;
  const auto look = [&](const Tensor& tensor) {
    if (!tensor.defined()) return;
    has_device |= tensor.device().type() == kind;
    if (tensor.is_cpu() && tensor.dim() > 0) strangers << ' ' << tensor.sizes();
  };
  const auto count = operation.schema().arguments().size();
  for (const auto& argument : c10::ArrayRef<c10::IValue>(*stack).slice(stack->size() - count)) {
    if (argument.isTensor()) {
      look(argument.toTensor());
    } else if (argument.isList()) {
      for (const auto& element : argument.toListRef()) {
        if (element.isTensor()) look(element.toTensor());
      }
    }
  }
  const auto name = operation.schema().operator_name();
  const bool takes_cpu_indices = name.name == "aten::index";  // as CUDA does
  TORCH_CHECK(!has_device || strangers.str().empty() || takes_cpu_indices, name,
              " got tensors of the device and CPU tensors of shape", strangers.str());
  at::native::cpu_fallback(operation, stack);
}

int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&, double, bool,
                        optional<double>, bool) {
  return 0;
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &plain_attention);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("as_strided", &as_strided);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("view", &view);
  m.impl("set_.source_Storage_storage_offset", &set_to_storage);
  m.impl("set_.source_Tensor", &set_to_tensor);
  m.impl("_local_scalar_dense", &item);
}

// Autocast as a GPU has it, for the products that models are made of.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
