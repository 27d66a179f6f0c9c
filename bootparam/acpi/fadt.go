package acpi

import "encoding/binary"

// Offsets in the FADT, from the table's start (ACPI 6.5 §5.2.9).
const (
	fadtFirmwareCtrl = 36
	fadtDSDT         = 40
	fadtSCIInt       = 46
	fadtPM1aEvent    = 56
	fadtPM1aControl  = 64
	fadtPMTimer      = 76
	fadtPM1EventLen  = 88
	fadtPM1CtrlLen   = 89
	fadtPMTimerLen   = 91
	fadtC2Latency    = 96
	fadtC3Latency    = 98
	fadtCentury      = 108
	fadtBootArch     = 109
	fadtFlags        = 112
	fadtResetReg     = 116
	fadtResetValue   = 128
	fadtMinor        = 131
	fadtXDSDT        = 140
	fadtXPM1aEvent   = 148
	fadtXPM1aControl = 172
	fadtXPMTimer     = 208
	fadtSize         = 276
)

// FADT flags (table 5.10). The clear ones tell as much: PWR_BUTTON that the power button is the fixed one,
// HW_REDUCED_ACPI that there is fixed hardware at all.
const (
	flagWBINVD      = 1 << 0  // WBINVD works
	flagProcC1      = 1 << 2  // C1 on all processors
	flagNoSlpButton = 1 << 5  // there is no fixed sleep button
	flagNoFixRTC    = 1 << 6  // the RTC's wake status is not in fixed registers
	flagTimer32     = 1 << 8  // the PM timer has 32 bits
	flagResetReg    = 1 << 10 // there is a reset register
)

// Boot architecture flags (table 5.11). That for an 8042 stays clear: no keyboard is there, and Linux spends no time on
// looking for one. It needs no flag to pulse the 8042's reset line, nor does it do so before it has tried RESET_REG.
const (
	bootLegacyDevices = 1 << 0 // COM1 and such
	bootNoVGA         = 1 << 2
)

const (
	noCState     = 0xfff // a latency that means: no such state
	centuryIndex = 0x32  // in the RTC's RAM
)

// Sizes of the fixed hardware's registers, in bytes.
const (
	pmEventSize   = 4
	pmControlSize = 2
	pmTimerSize   = 4
	resetSize     = 1
)

// fadt is the fixed ACPI description table. SMI_CMD stays zero: the machine is in ACPI mode already.
func fadt(cfg Config, facsAddr, dsdtAddr uint64) []byte {
	le := binary.LittleEndian
	t := make([]byte, fadtSize)
	le.PutUint32(t[fadtFirmwareCtrl:], uint32(facsAddr)) // and X_FIRMWARE_CTRL is zero: not both
	le.PutUint32(t[fadtDSDT:], uint32(dsdtAddr))
	le.PutUint64(t[fadtXDSDT:], dsdtAddr)
	le.PutUint16(t[fadtSCIInt:], uint16(cfg.SCI))
	for _, block := range []struct {
		old, oldLen, ext int
		port             uint16
		size             uint8
		access           byte
	}{
		{fadtPM1aEvent, fadtPM1EventLen, fadtXPM1aEvent, cfg.PM.Event, pmEventSize, accessWord}, // it is two registers
		{fadtPM1aControl, fadtPM1CtrlLen, fadtXPM1aControl, cfg.PM.Control, pmControlSize, accessWord},
		{fadtPMTimer, fadtPMTimerLen, fadtXPMTimer, cfg.PM.Timer, pmTimerSize, accessDWord},
	} {
		le.PutUint32(t[block.old:], uint32(block.port))
		t[block.oldLen] = block.size
		putPortAddress(t[block.ext:], block.port, block.size, block.access)
	}
	le.PutUint16(t[fadtC2Latency:], noCState)
	le.PutUint16(t[fadtC3Latency:], noCState)
	t[fadtCentury] = centuryIndex
	le.PutUint16(t[fadtBootArch:], bootLegacyDevices|bootNoVGA)
	le.PutUint32(t[fadtFlags:], flagWBINVD|flagProcC1|flagNoSlpButton|flagNoFixRTC|flagTimer32|flagResetReg)
	putPortAddress(t[fadtResetReg:], cfg.Reset.Port, resetSize, accessByte)
	t[fadtResetValue] = cfg.Reset.Value
	t[fadtMinor] = 5
	return table("FACP", 6, t[headerSize:])
}

// Access sizes of a generic address structure.
const (
	accessByte  = 1
	accessWord  = 2
	accessDWord = 3
)

// putPortAddress writes a generic address structure (§5.2.3.2) for size bytes of I/O space.
func putPortAddress(t []byte, port uint16, size uint8, access byte) {
	const systemIO = 1
	t[0], t[1], t[2], t[3] = systemIO, size*8, 0, access
	binary.LittleEndian.PutUint64(t[4:], uint64(port))
}
