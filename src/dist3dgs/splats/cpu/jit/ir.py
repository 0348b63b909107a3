"""A small language for numerical kernels: Python expressions over LLVM values, scalars or vectors of 16 lanes.

LLVM lowers a 16-lane vector to whatever the machine has: one AVX-512 register, two AVX2, four NEON. A kernel is a C
function `void name(int64_t *args)`; the parameters are read from `args` in the order in which they are declared.
Everything is generic over the element type: REAL is float or double, chosen once per module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
ZERO = ir.Constant(I32, 0)


def vector(element: ir.Type, lanes: int = LANES) -> ir.VectorType:
    """Return the vector type of 16 (or so many) lanes of `element`."""
    return ir.VectorType(element, lanes)


def like(kind: ir.Type, element: ir.Type) -> ir.Type:
    """Return `element` with as many lanes as `kind` has."""
    return vector(element, kind.count) if isinstance(kind, ir.VectorType) else element


def element_of(kind: ir.Type) -> ir.Type:
    """Return the type of one lane."""
    return kind.element if isinstance(kind, ir.VectorType) else kind


def is_float(kind: ir.Type) -> bool:
    """Return True if the lanes are floating point numbers."""
    return isinstance(element_of(kind), (ir.FloatType, ir.DoubleType))


class Value:
    """A scalar or a vector of 16 lanes. Python numbers and scalars are broadcast to the lanes."""

    __slots__ = ("k", "v")

    def __init__(self, kernel: "Kernel", v: Any) -> None:
        self.k, self.v = kernel, v

    @property
    def kind(self) -> ir.Type:
        return self.v.type

    def _binary(self, other: Any, float_op: str, int_op: str) -> "Value":
        a, b = self.k.match(self, other)
        return Value(self.k, getattr(self.k.b, float_op if is_float(a.kind) else int_op)(a.v, b.v))

    def __add__(self, other: Any) -> "Value":
        return self._binary(other, "fadd", "add")

    def __sub__(self, other: Any) -> "Value":
        return self._binary(other, "fsub", "sub")

    def __mul__(self, other: Any) -> "Value":
        return self._binary(other, "fmul", "mul")

    def __truediv__(self, other: Any) -> "Value":
        return self._binary(other, "fdiv", "fdiv")

    def __floordiv__(self, other: Any) -> "Value":
        """Divide non-negative integers."""
        return self._binary(other, "fdiv", "sdiv")

    def __mod__(self, other: Any) -> "Value":
        return self._binary(other, "frem", "srem")

    def __radd__(self, other: Any) -> "Value":
        return self + other

    def __rmul__(self, other: Any) -> "Value":
        return self * other

    def __rsub__(self, other: Any) -> "Value":
        return self.k.match(self, other)[1] - self

    def __rtruediv__(self, other: Any) -> "Value":
        return self.k.match(self, other)[1] / self

    def __neg__(self) -> "Value":
        return Value(self.k, self.k.b.fneg(self.v) if is_float(self.kind) else self.k.b.neg(self.v))

    def __and__(self, other: Any) -> "Value":
        return self._binary(other, "and_", "and_")

    def __or__(self, other: Any) -> "Value":
        return self._binary(other, "or_", "or_")

    def __xor__(self, other: Any) -> "Value":
        return self._binary(other, "xor", "xor")

    def __invert__(self) -> "Value":
        return Value(self.k, self.k.b.not_(self.v))

    def __lshift__(self, other: Any) -> "Value":
        return self._binary(other, "shl", "shl")

    def __rshift__(self, other: Any) -> "Value":
        """Shift right, filling with zeros (logical shift)."""
        return self._binary(other, "lshr", "lshr")

    def _compare(self, op: str, other: Any) -> "Value":
        a, b = self.k.match(self, other)
        compare = self.k.b.fcmp_ordered if is_float(a.kind) else self.k.b.icmp_signed
        return Value(self.k, compare(op, a.v, b.v))

    def __lt__(self, other: Any) -> "Value":
        return self._compare("<", other)

    def __le__(self, other: Any) -> "Value":
        return self._compare("<=", other)

    def __gt__(self, other: Any) -> "Value":
        return self._compare(">", other)

    def __ge__(self, other: Any) -> "Value":
        return self._compare(">=", other)

    def equals(self, other: Any) -> "Value":
        """Compare lane by lane for equality (`==` is Python's own)."""
        return self._compare("==", other)

    def differs(self, other: Any) -> "Value":
        return self._compare("!=", other)

    def min(self, other: Any) -> "Value":
        """Return the minimum; `other` where self is NaN."""
        return self.k.select(self < other, self, other)

    def max(self, other: Any) -> "Value":
        """Return the maximum; `other` where self is NaN."""
        return self.k.select(self > other, self, other)

    def abs(self) -> "Value":
        return self.k.intrinsic("llvm.fabs", self)

    def sqrt(self) -> "Value":
        return self.k.intrinsic("llvm.sqrt", self)

    def floor(self) -> "Value":
        return self.k.intrinsic("llvm.floor", self)

    def ceil(self) -> "Value":
        return self.k.intrinsic("llvm.ceil", self)

    def finite(self) -> "Value":
        """Return True where neither NaN nor infinite."""
        return (self - self).equals(0.0)

    def to(self, element: ir.Type) -> "Value":
        """Convert lane by lane; floats towards zero, integers with their sign."""
        a, builder = element_of(self.kind), self.k.b
        if a == element:
            return self
        target = like(self.kind, element)
        if is_float(a) and is_float(element):
            op = builder.fpext if element == F64 else builder.fptrunc
        elif is_float(a):
            op = builder.fptosi
        elif is_float(element):
            op = builder.sitofp
        elif a == I1:
            op = builder.zext
        else:
            op = builder.sext if element.width > a.width else builder.trunc
        return Value(self.k, op(self.v, target))

    def as_bits(self) -> "Value":
        """Reinterpret the bits as integers."""
        kind = I32 if element_of(self.kind) == F32 else I64
        return Value(self.k, self.k.b.bitcast(self.v, like(self.kind, kind)))

    def as_real(self) -> "Value":
        """Reinterpret the bits as floats."""
        kind = F32 if element_of(self.kind) == I32 else F64
        return Value(self.k, self.k.b.bitcast(self.v, like(self.kind, kind)))

    @property
    def is_vector(self) -> bool:
        return isinstance(self.kind, ir.VectorType)

    def lane(self, i: Any) -> "Value":
        """Extract one lane as a scalar."""
        index = i.v if isinstance(i, Value) else ir.Constant(I32, i)
        return Value(self.k, self.k.b.extract_element(self.v, index))

    def mask_bits(self) -> "Value":
        """Pack booleans into the bits of an i32, lane 0 lowest."""
        bits = self.k.b.bitcast(self.v, ir.IntType(self.kind.count))
        return Value(self.k, self.k.b.zext(bits, I32) if self.kind.count < 32 else bits)

    def lowest_bit(self) -> "Value":
        """Return the index of the lowest set bit (undefined for 0)."""
        return Value(self.k, self.k.b.cttz(self.v, ir.Constant(I1, 1)))

    def permute(self, lanes: list[int], other: "Value | None" = None) -> "Value":
        """Shuffle lanes of self (numbered first) and other (numbered after them)."""
        second = other.v if other is not None else ir.Constant(self.kind, ir.Undefined)
        chosen = ir.Constant(vector(I32, len(lanes)), lanes)
        return Value(self.k, self.k.b.shuffle_vector(self.v, second, chosen))

    def join(self, other: "Value") -> "Value":
        """Concatenate two vectors: self, then other."""
        return self.permute(list(range(2 * self.kind.count)), other)

    def halves(self) -> "list[Value]":
        """Split a vector into the two halves that `join` concatenated."""
        n = self.kind.count // 2
        return [self.permute(list(range(n))), self.permute(list(range(n, 2 * n)))]


class Pointer:
    """An address with an element type. Indices count elements."""

    def __init__(self, kernel: "Kernel", v: Any, element: ir.Type) -> None:
        self.k, self.v, self.element = kernel, v, element

    def at(self, index: Any) -> "Pointer":
        """Advance the pointer by `index` elements."""
        i = self.k.index(index)
        return Pointer(self.k, self.k.b.gep(self.v, [i.v], source_etype=self.element), self.element)

    def view(self, element: ir.Type) -> "Pointer":
        """Reinterpret the address with another element type."""
        return Pointer(self.k, self.v, element)

    def __getitem__(self, index: Any) -> Value:
        return Value(self.k, self.k.b.load(self.at(index).v, typ=self.element))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.k.b.store(self.k.cast(value, self.element).v, self.at(index).v)

    def load(self, index: Any, align: int | None = None) -> Value:
        """Load 16 consecutive elements."""
        instruction = self.k.b.load(self.at(index).v, typ=vector(self.element))
        instruction.align = align or self.k.size_of(self.element)
        return Value(self.k, instruction)

    def store(self, index: Any, value: Any, align: int | None = None) -> None:
        """Store 16 consecutive elements."""
        value = self.k.cast(value, vector(self.element))
        instruction = self.k.b.store(value.v, self.at(index).v)
        instruction.align = align or self.k.size_of(self.element)

    def load_masked(self, index: Any, mask: Value) -> Value:
        """Load 16 consecutive elements; 0 where the mask is off, without reading there."""
        kind = vector(self.element)
        args = [self.at(index).v, ir.Constant(I32, self.k.size_of(self.element)), mask.v, self.k.zero(kind).v]
        return self.k.call(f"llvm.masked.load.{_suffix(kind)}.p0", kind, args)

    def store_masked(self, index: Any, value: Any, mask: Value) -> None:
        kind = vector(self.element)
        value = self.k.cast(value, kind)
        args = [value.v, self.at(index).v, ir.Constant(I32, self.k.size_of(self.element)), mask.v]
        self.k.call(f"llvm.masked.store.{_suffix(kind)}.p0", ir.VoidType(), args)

    def store_packed(self, index: Any, value: Value, mask: Value) -> None:
        """Store the lanes chosen by the mask consecutively (compress)."""
        args = [value.v, self.at(index).v, mask.v]
        self.k.call(f"llvm.masked.compressstore.{_suffix(value.kind)}", ir.VoidType(), args)

    def gather(self, indices: Value, mask: Value) -> Value:
        """Gather elements at 16 indices; 0 where the mask is off, without reading there."""
        kind = vector(self.element)
        args = [self._addresses(indices), ir.Constant(I32, self.k.size_of(self.element)), mask.v]
        return self.k.call(f"llvm.masked.gather.{_suffix(kind)}.v16p0", kind, [*args, self.k.zero(kind).v])

    def scatter(self, indices: Value, value: Any, mask: Value) -> None:
        """Scatter 16 elements to 16 different indices."""
        kind = vector(self.element)
        value = self.k.cast(value, kind)
        args = [value.v, self._addresses(indices), ir.Constant(I32, self.k.size_of(self.element)), mask.v]
        self.k.call(f"llvm.masked.scatter.{_suffix(kind)}.v16p0", ir.VoidType(), args)

    def _addresses(self, indices: Value) -> Any:
        b = self.k.b
        gep = ir.instructions.GEPInstr(b.block, self.v, [indices.v], False, "", source_etype=self.element)
        gep.type = ir.VectorType(ir.PointerType(), LANES)
        b.block.instructions.append(gep)
        b.position_at_end(b.block)
        return gep

    def prefetch(self, index: Any) -> None:
        """Prefetch the cache line of one element."""
        args = [self.at(index).v, ir.Constant(I32, 0), ir.Constant(I32, 3), ir.Constant(I32, 1)]
        self.k.call("llvm.prefetch.p0", ir.VoidType(), args)

    def clear(self, index: Any, count: Any) -> None:
        """Set `count` elements to zero."""
        size = self.k.index(count) * self.k.size_of(self.element)
        args = [self.at(index).v, ir.Constant(I8, 0), size.v, ir.Constant(I1, 0)]
        self.k.call("llvm.memset.p0.i64", ir.VoidType(), args)

    def fetch_add(self, index: Any, amount: Any) -> Value:
        """Add atomically and return the old value."""
        amount = self.k.cast(amount, self.element)
        return Value(self.k, self.k.b.atomic_rmw("add", self.at(index).v, amount.v, "monotonic"))


class Variable:
    """A value that changes in loops; LLVM keeps it in a register."""

    def __init__(self, kernel: "Kernel", start: Value) -> None:
        self.k, self.kind = kernel, start.kind
        with kernel.b.goto_entry_block():
            self.slot = kernel.b.alloca(start.kind)
        self.set(start)

    def get(self) -> Value:
        return Value(self.k, self.k.b.load(self.slot, typ=self.kind))

    def set(self, value: Any) -> None:
        self.k.b.store(self.k.cast(value, self.kind).v, self.slot)

    def add(self, value: Any) -> None:
        self.set(self.get() + value)


class Kernel:
    """A kernel under construction. `real` is its element type."""

    def __init__(self, module: ir.Module, name: str, real: ir.Type) -> None:
        self.module, self.real, self.vreal = module, real, vector(real)
        self.integer = I32 if real == F32 else I64  # as wide as real
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), name)
        function.attributes.add("nounwind")
        self.b = ir.IRBuilder(function.append_basic_block("entry"))
        self.b.position_at_end(self.b.append_basic_block("body"))
        self._args = Pointer(self, function.args[0], I64)
        self._num_args = 0
        self.function = function

    # -- parameters, in the order of the caller's arguments

    def arg(self, kind: ir.Type) -> Value:
        """Declare a scalar parameter: integers as they are, reals passed as double."""
        raw = self._next()
        return Value(self, self.b.bitcast(raw.v, F64)).to(kind) if is_float(kind) else raw.to(kind)

    def pointer(self, element: ir.Type | None = None) -> Pointer:
        """Declare a pointer parameter to elements of a type, `real` by default."""
        return Pointer(self, self.b.inttoptr(self._next().v, ir.PointerType()), element or self.real)

    def _next(self) -> Value:
        self._num_args += 1
        return self._args[self._num_args - 1]

    # -- values

    def constant(self, x: float | int, kind: ir.Type) -> Value:
        x = float(x) if is_float(kind) else int(x)
        return Value(self, ir.Constant(kind, [x] * kind.count if isinstance(kind, ir.VectorType) else x))

    def lanes(self, values: list[Any], element: ir.Type | None = None) -> Value:
        """Make a vector of 16 constants."""
        return Value(self, ir.Constant(vector(element or self.real), values))

    def zero(self, kind: ir.Type) -> Value:
        return self.constant(0, kind)

    def splat(self, x: Value, lanes: int = LANES) -> Value:
        """Broadcast a scalar to all lanes."""
        kind = vector(x.kind, lanes)
        undef = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undef, x.v, ZERO)
        return Value(self, self.b.shuffle_vector(first, undef, ir.Constant(vector(I32, lanes), [0] * lanes)))

    def cast(self, x: Any, kind: ir.Type) -> Value:
        """Convert `x` to `kind`: Python numbers become constants, scalars are broadcast."""
        if not isinstance(x, Value):
            return self.constant(x, kind)
        return self.splat(x, kind.count) if isinstance(kind, ir.VectorType) and not x.is_vector else x

    def match(self, *xs: Any) -> list[Value]:
        """Convert operands to a common type."""
        kinds = [x.kind for x in xs if isinstance(x, Value)]
        kind = next((t for t in kinds if isinstance(t, ir.VectorType)), kinds[0])
        return [self.cast(x, kind) for x in xs]

    def index(self, x: Any) -> Value:
        return self.constant(x, I64) if not isinstance(x, Value) else x.to(I64)

    def select(self, condition: Value, a: Any, b: Any) -> Value:
        if condition.is_vector and not any(isinstance(x, Value) and x.is_vector for x in (a, b)):
            kind = next((x.kind for x in (a, b) if isinstance(x, Value)), self.real)
            a, b = (self.cast(x, like(condition.kind, kind)) for x in (a, b))
        a, b = self.match(a, b)
        return Value(self, self.b.select(condition.v, a.v, b.v))

    def fma(self, a: Any, b: Any, c: Any) -> Value:
        """Compute a * b + c, rounded once."""
        return self.intrinsic("llvm.fma", *self.match(a, b, c))

    def intrinsic(self, name: str, *args: Value) -> Value:
        return self.call(f"{name}.{_suffix(args[0].kind)}", args[0].kind, [a.v for a in args])

    def call(self, name: str, result: ir.Type, args: list[Any]) -> Value:
        function = self.module.globals.get(name)
        if function is None:  # declared by hand: llvmlite's declare_intrinsic refuses vector types
            function = ir.Function(self.module, ir.FunctionType(result, [a.type for a in args]), name)
        return Value(self, self.b.call(function, args))

    def size_of(self, element: ir.Type) -> int:
        """Return the bytes of one element."""
        return {F32: 4, F64: 8}[element] if is_float(element) else element.width // 8

    def variable(self, start: Any, kind: ir.Type | None = None) -> Variable:
        return Variable(self, self.cast(start, kind) if kind is not None else start)

    def local(self, count: int, element: ir.Type | None = None) -> Pointer:
        """Allocate an uninitialised array on the stack, aligned to a cache line."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(ir.ArrayType(element or self.real, count))
        slot.align = 64
        slot.type = ir.PointerType()  # forget the array: indices count elements
        return Pointer(self, slot, element or self.real)

    # -- control flow

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Value]:
        """Emit `for i in range(start, stop, step)`."""
        start, stop, b = self.index(start), self.index(stop), self.b
        before = b.block
        head, body, done = (b.append_basic_block(n) for n in ("head", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(start.v, before)
        b.cbranch(b.icmp_signed("<", i, stop.v), body, done)
        b.position_at_end(body)
        yield Value(self, i)
        i.add_incoming(b.add(i, ir.Constant(I64, step)), b.block)
        b.branch(head)
        b.position_at_end(done)

    @contextmanager
    def loop_while(self, condition: Callable[[], Value]) -> Iterator[None]:
        """Emit `while condition()`."""
        b = self.b
        head, body, done = (b.append_basic_block(n) for n in ("while", "body", "done"))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(condition().v, body, done)
        b.position_at_end(body)
        yield
        b.branch(head)
        b.position_at_end(done)

    @contextmanager
    def when(self, condition: Value, likely: bool | None = None) -> Iterator[None]:
        """Emit `if condition`."""
        with self.b.if_then(condition.v, likely=likely):
            yield

    @contextmanager
    def tasks(self, counter: Pointer, num_tasks: Any) -> Iterator[Value]:
        """Distribute tasks 0..num_tasks-1 dynamically among all threads that run this kernel."""
        task = self.variable(counter.fetch_add(0, 1))
        stop = self.index(num_tasks)
        with self.loop_while(lambda: task.get() < stop):
            yield task.get()
            task.set(counter.fetch_add(0, 1))

    def finish(self) -> None:
        """End the function."""
        self.b.ret_void()
        with self.b.goto_entry_block():
            pass
        entry, body = self.function.blocks[0], self.function.blocks[1]
        if not entry.is_terminated:
            self.b.position_at_end(entry)
            self.b.branch(body)


def _suffix(kind: ir.Type) -> str:
    lane = element_of(kind)
    name = {F32: "f32", F64: "f64"}[lane] if is_float(lane) else f"i{lane.width}"
    return f"v{kind.count}{name}" if isinstance(kind, ir.VectorType) else name
