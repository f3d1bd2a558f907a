package rpm

// Tag numbers an entry of a header (rpm's include/rpm/rpmtag.h).
type Tag uint32

// Tags of the signature header. Those from 1000 on overlap with numbers of the main header.
const (
	SigRegion   Tag = 62
	SigDSA      Tag = 267 // header signature by DSA, ECDSA or EdDSA
	SigRSA      Tag = 268 // header signature by RSA
	SigSHA1     Tag = 269 // hex sha1 of the header
	SigLongSize Tag = 270 // of header and payload, over 4 GiB
	SigLongArch Tag = 271 // of the payload, not compressed
	SigSHA256   Tag = 273 // hex sha256 of the header
	SigFileSigs Tag = 274 // IMA signatures, one a file
	SigFileLen  Tag = 275
	SigVerity   Tag = 276 // fsverity signatures, one a file
	SigVerAlgo  Tag = 277
	SigOpenPGP  Tag = 278 // base64 signatures, any number of them, rpm 6
	SigSHA3     Tag = 279 // hex sha3-256 of the header, rpm 6
	SigReserve6 Tag = 999 // as 1008, of packages of format 6, which have no tag above it
	SigSize     Tag = 1000
	SigPGP      Tag = 1002 // header and payload signature by RSA, of rpm 3
	SigMD5      Tag = 1004 // of header and payload
	SigGPG      Tag = 1005 // header and payload signature by DSA, of rpm 3
	SigPayload  Tag = 1007 // size of the payload, not compressed
	SigReserve  Tag = 1008 // zeros that a signature may take
)

// Tags of the main header.
const (
	RegionImmutable Tag = 63
	I18NTable       Tag = 100

	Name         Tag = 1000
	Version      Tag = 1001
	Release      Tag = 1002
	Epoch        Tag = 1003
	Summary      Tag = 1004
	Description  Tag = 1005
	BuildTime    Tag = 1006
	BuildHost    Tag = 1007
	Size         Tag = 1009
	Vendor       Tag = 1011
	License      Tag = 1014
	Packager     Tag = 1015
	Group        Tag = 1016
	Sources      Tag = 1018
	Patches      Tag = 1019
	URL          Tag = 1020
	OS           Tag = 1021
	Arch         Tag = 1022
	PreIn        Tag = 1023
	PostIn       Tag = 1024
	PreUn        Tag = 1025
	PostUn       Tag = 1026
	OldFilenames Tag = 1027
	FileSizes    Tag = 1028
	FileModes    Tag = 1030
	FileRdevs    Tag = 1033
	FileMtimes   Tag = 1034
	FileDigests  Tag = 1035
	FileLinktos  Tag = 1036
	FileFlags    Tag = 1037
	FileUser     Tag = 1039
	FileGroup    Tag = 1040
	SourceRPM    Tag = 1044
	FileVerify   Tag = 1045
	ArchiveSize  Tag = 1046
	ProvideName  Tag = 1047
	RequireFlags Tag = 1048
	RequireName  Tag = 1049
	RequireVer   Tag = 1050
	NoSource     Tag = 1051
	NoPatch      Tag = 1052
	ConflFlags   Tag = 1053
	ConflName    Tag = 1054
	ConflVer     Tag = 1055
	ExcludeArch  Tag = 1059
	ExcludeOS    Tag = 1060
	ExclArch     Tag = 1061
	ExclOS       Tag = 1062
	RPMVersion   Tag = 1064
	ChangeTime   Tag = 1080
	ChangeName   Tag = 1081
	ChangeText   Tag = 1082
	PreInProg    Tag = 1085
	PostInProg   Tag = 1086
	PreUnProg    Tag = 1087
	PostUnProg   Tag = 1088
	BuildArchs   Tag = 1089
	ObsName      Tag = 1090
	Cookie       Tag = 1094
	FileDevices  Tag = 1095
	FileInodes   Tag = 1096
	FileLangs    Tag = 1097
	SourcePkg    Tag = 1106
	ProvideFlags Tag = 1112
	ProvideVer   Tag = 1113
	ObsFlags     Tag = 1114
	ObsVer       Tag = 1115
	DirIndexes   Tag = 1116
	Basenames    Tag = 1117
	DirNames     Tag = 1118
	OptFlags     Tag = 1122
	DistURL      Tag = 1123
	PayloadFmt   Tag = 1124
	PayloadComp  Tag = 1125
	PayloadFlags Tag = 1126
	Platform     Tag = 1132
	FileColors   Tag = 1140
	PreTrans     Tag = 1151
	PostTrans    Tag = 1152
	OldSugName   Tag = 1156 // weak dependencies as SUSE and Mandriva had them before rpm 4.12
	OldSugVer    Tag = 1157
	OldSugFlags  Tag = 1158
	OldEnhName   Tag = 1159
	OldEnhVer    Tag = 1160
	OldEnhFlags  Tag = 1161
	LongFileSize Tag = 5008
	LongSize     Tag = 5009
	FileCaps     Tag = 5010
	FileDigAlgo  Tag = 5011
	BugURL       Tag = 5012
	VCS          Tag = 5034
	RecName      Tag = 5046
	RecVer       Tag = 5047
	RecFlags     Tag = 5048
	SugName      Tag = 5049
	SugVer       Tag = 5050
	SugFlags     Tag = 5051
	SupName      Tag = 5052
	SupVer       Tag = 5053
	SupFlags     Tag = 5054
	EnhName      Tag = 5055
	EnhVer       Tag = 5056
	EnhFlags     Tag = 5057
	Encoding     Tag = 5062
	PayloadSHA   Tag = 5092 // sha256 of the compressed payload, or what PayloadAlgo says
	PayloadAlgo  Tag = 5093
	Modularity   Tag = 5096
	PayloadAlt   Tag = 5097 // as PayloadSHA, of the payload not compressed
	RPMFormat    Tag = 5114 // 6 for packages of format 6
	SourceNEVR   Tag = 5120
	Payload512   Tag = 5121 // sha512 of the compressed payload, rpm 6
	PayloadSHA3  Tag = 5123 // sha3-256 of the compressed payload, rpm 6
)

// Types of entries (rpm's docs/manual/format_header.md).
const (
	TypeChar   uint32 = 1
	TypeInt8   uint32 = 2
	TypeInt16  uint32 = 3
	TypeInt32  uint32 = 4
	TypeInt64  uint32 = 5
	TypeString uint32 = 6
	TypeBin    uint32 = 7
	TypeArray  uint32 = 8 // array of strings
	TypeI18N   uint32 = 9 // one string per locale
)

// Flags of files (rpm's include/rpm/rpmfiles.h).
const (
	FileConfig    = 1 << 0
	FileDoc       = 1 << 1
	FileMissingOK = 1 << 3
	FileNoReplace = 1 << 4
	FileSpec      = 1 << 5
	FileGhost     = 1 << 6
	FileLicense   = 1 << 7
)

// Flags of dependencies (rpm's include/rpm/rpmds.h).
const (
	SenseLess      = 1 << 1
	SenseGreater   = 1 << 2
	SenseEqual     = 1 << 3
	SensePostTrans = 1 << 5
	SensePreReq    = 1 << 6
	SensePreTrans  = 1 << 7
	SensePre       = 1 << 9
	SensePost      = 1 << 10
	SenseMissingOK = 1 << 19
	SenseRPMLib    = 1 << 24
	SenseStrong    = 1 << 27
)

// Digest algorithms of files and payloads (RFC 9580, section 9.5), as FileDigAlgo names them.
const (
	digestMD5    = 1
	digestSHA1   = 2
	digestSHA256 = 8
	digestSHA384 = 9
	digestSHA512 = 10
	digestSHA224 = 11
	digestSHA3   = 12
)
