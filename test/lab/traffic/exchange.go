package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What goes over a connection, in the order of each direction:
//
//	client  the number of bytes that it will send, and of those that it wants, each 8 bytes little endian; its bytes
//	server  the bytes wanted; 1 byte: 0 if all that the client has sent was right
//
// The server then closes. A direction's bytes are those of pattern.

const (
	headerSize = 16
	blockSize  = 64 << 10
)

// The seeds of the two directions, so that bytes which come back are not taken for the other end's.
const (
	upSeed   = 0x75702020
	downSeed = 0x646f776e
)

// pattern fills p, which is at the offset of a direction's bytes, a multiple of 8. Each 8 bytes tell their place, so that
// ones which are missing, doubled or out of order are found.
func pattern(p []byte, seed, offset uint64) {
	var word [8]byte
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(word[:], (seed<<32+offset/8+uint64(i)/8)*0x9e3779b97f4a7c15)
		copy(p[i:], word[:])
	}
}

func send(w io.Writer, seed, n uint64) error {
	block := make([]byte, min(n, blockSize))
	for offset := uint64(0); offset < n; {
		p := block[:min(n-offset, blockSize)]
		pattern(p, seed, offset)
		if _, err := w.Write(p); err != nil {
			return fmt.Errorf("send at byte %d of %d: %w", offset, n, err)
		}
		offset += uint64(len(p))
	}
	return nil
}

func receive(r io.Reader, seed, n uint64) error {
	block, want := make([]byte, min(n, blockSize)), make([]byte, min(n, blockSize))
	for offset := uint64(0); offset < n; {
		p, w := block[:min(n-offset, blockSize)], want[:min(n-offset, blockSize)]
		got, err := io.ReadFull(r, p)
		pattern(w, seed, offset)
		if !bytes.Equal(p[:got], w[:got]) {
			i := 0
			for p[i] == w[i] {
				i++
			}
			return fmt.Errorf("byte %d of %d is wrong: % x, not % x", offset+uint64(i), n, p[i:min(got, i+8)], w[i:min(got, i+8)])
		}
		if err != nil {
			return fmt.Errorf("receive at byte %d of %d: %w", offset+uint64(got), n, err)
		}
		offset += uint64(len(p))
	}
	return nil
}

// ask is the client's end.
func ask(conn io.ReadWriter, up, down uint64) error {
	sent := make(chan error, 1)
	go func() {
		w := bufio.NewWriterSize(conn, int(min(headerSize+up, blockSize))) // what is little goes out at once
		header := make([]byte, headerSize)
		binary.LittleEndian.PutUint64(header, up)
		binary.LittleEndian.PutUint64(header[8:], down)
		_, err := w.Write(header)
		sent <- errors.Join(err, send(w, upSeed, up), w.Flush())
	}()
	if err := receive(conn, downSeed, down); err != nil {
		return err
	}
	var verdict [1]byte
	if _, err := io.ReadFull(conn, verdict[:]); err != nil {
		return fmt.Errorf("the server's verdict: %w", err)
	}
	if verdict[0] != 0 {
		return fmt.Errorf("of %d bytes sent, the server has received wrong ones", up)
	}
	return <-sent
}

// answer is the server's end.
func answer(conn io.ReadWriter) error {
	var header [headerSize]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return fmt.Errorf("the client's header: %w", err)
	}
	up, down := binary.LittleEndian.Uint64(header[:]), binary.LittleEndian.Uint64(header[8:])
	sent := make(chan error, 1)
	w := bufio.NewWriterSize(conn, int(min(down, blockSize-1)+1)) // and the verdict
	go func() { sent <- send(w, downSeed, down) }()
	received := receive(conn, upSeed, up)
	if err := <-sent; err != nil {
		return err
	}
	verdict := byte(0)
	if received != nil {
		verdict = 1
	}
	if err := errors.Join(w.WriteByte(verdict), w.Flush()); err != nil {
		return fmt.Errorf("the verdict: %w", err)
	}
	return received
}
