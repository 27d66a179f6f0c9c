package iovec_test

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vmm/internal/iovec"
)

func vectors(buffers ...[]byte) []unix.Iovec {
	var iov []unix.Iovec
	for _, b := range buffers {
		iov = append(iov, unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))})
	}
	return iov
}

func TestAdvance(t *testing.T) {
	for n, want := range []string{"abcdef", "bcdef", "cdef", "def", "ef", "f", ""} {
		var got []byte
		for _, v := range iovec.Advance(vectors([]byte("ab"), nil, []byte("c"), []byte("def")), n) {
			got = append(got, unsafe.Slice(v.Base, v.Len)...)
		}
		require.Equal(t, want, string(got))
	}
	require.Empty(t, iovec.Advance(vectors(nil, nil), 0))
	require.Empty(t, iovec.Advance(nil, 0))
}

func TestAligned(t *testing.T) {
	page := make([]byte, 8192) // Go aligns it to a page
	require.True(t, iovec.Aligned(vectors(page[1:2]), 1))
	require.True(t, iovec.Aligned(vectors(page[:512], page[1024:]), 512))
	require.False(t, iovec.Aligned(vectors(page[:512], page[256:768]), 512), "an address")
	require.False(t, iovec.Aligned(vectors(page[:511]), 512), "a length")
}

func TestSplit(t *testing.T) {
	for n := range 7 {
		buffers := [][]byte{[]byte("ab"), nil, []byte("c"), []byte("def")}
		iov := vectors(buffers...)
		require.EqualValues(t, 6, iovec.Len(iov))
		head, rest := iovec.Split(iov, int64(n))
		require.Equal(t, "abcdef"[:n], text(head))
		iovec.Advance(head, n) // as who reads into it does
		behind := rest.Of(iov)
		require.Equal(t, "abcdef"[n:], text(behind))
		iovec.Zero(behind)
		require.Equal(t, "abcdef"[:n]+"\x00\x00\x00\x00\x00\x00"[n:], string(buffers[0])+string(buffers[2])+string(buffers[3]))
	}
	head, rest := iovec.Split(nil, 0)
	require.Empty(t, head)
	require.Empty(t, rest.Of(nil))
}

func text(iov []unix.Iovec) string {
	var b []byte
	for _, v := range iov {
		b = append(b, unsafe.Slice(v.Base, v.Len)...)
	}
	return string(b)
}
