"""The operators that a plan's graphs may hold: opset 21, default domain.

The list is short on purpose. Nothing in it reads a file, calls out, keeps state or draws random numbers, and every
one runs on stock onnxruntime, on the processor and in the browser. The device checks graphs against it before it loads
them, subgraphs included; the lowering emits nothing else.
"""

__all__ = ["ALLOWED_OPS", "MAX_IR_VERSION", "OPSET"]

OPSET = 21
"""The opset of the default domain that graphs are written in, and the newest that a device accepts."""

MAX_IR_VERSION = 10
"""The newest ONNX file version that a device accepts."""

_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip Cos
    Cosh Div Equal Erf Exp Floor Greater GreaterOrEqual Less LessOrEqual Log Max Min Mod Mul Neg Not Or Pow Reciprocal
    Relu Round Sigmoid Sign Sin Sinh Sqrt Sub Tan Tanh Where Xor
"""
_SHAPES = "Concat ConstantOfShape Expand Identity Pad Range Reshape Slice Split Tile Transpose"
_SUMS = "ArgMax ArgMin CumSum Gemm MatMul ReduceMax ReduceMin ReduceProd ReduceSum TopK"
_IMAGES = "AveragePool Conv ConvTranspose MaxPool MaxUnpool"
_INDEXING = "Gather GatherElements ScatterElements ScatterND"
_CONTROL = "If Scan"

ALLOWED_OPS: frozenset[str] = frozenset(" ".join((_ELEMENTWISE, _SHAPES, _SUMS, _IMAGES, _INDEXING, _CONTROL)).split())
"""Names of the allowed operators."""
