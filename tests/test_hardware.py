"""What a machine says of itself."""

import platform

from lm.hardware import processor


def test_a_processor_is_told_by_its_name_and_its_instructions(tmp_path):
    """In the order of their width, not of the file; with none of them it is the name alone."""
    told = tmp_path / "cpuinfo"
    told.write_text("processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu amx_tile avx512f avx2\n\nprocessor\t: 1\n")
    assert processor(told) == "Some Xeon with AVX2, AVX-512, AMX"
    told.write_text("model name\t: Old One\nflags\t\t: fpu sse2\n")
    assert processor(told) == "Old One"


def test_where_linux_tells_nothing_python_is_asked(tmp_path):
    assert processor(tmp_path / "none") in (platform.processor(), platform.machine())
