"""What descriptions and agents of real scanners and orders say of contrast: a pinned list, one line per text."""

from __future__ import annotations

import pytest

from heimdallr_ray.dicom.contrast import Injected, Phase, injected, named_phase
from heimdallr_ray.dicom.rules import default_rules

WORDS = default_rules().file.contrast

NATIVE = """
ABD WITHOUT IV CONTRAST|W/O IV CONTRAST|CT ABD & PELVIS W/O IV CONTRAST|CT HEAD/BRAIN WO CONTRAST|NO IV CONTRAST
W/O IV CON|WO CON|W/O CONTRAST 2.5|CT CHEST ABD PEL WO|HEAD W/O|HEAD W/O 5MM|HEAD WITHOUT|HEAD_W/O_CONTRAST
NONCON|NON-CON|NON CON 5.0|AX NON CON BRAIN|NON-CONTRAST|NON_CONTRAST|NONCONTRAST HEAD|NON ENHANCED|NON-ENHANCED LIVER
C-|ABD C- 5MM|PRE|AX PRE 2.5MM|PRE CONTRAST|LIVER PRE CON|Abdomen nativ 3.0 B30f|sans injection|sem contraste
sin contraste|ohne KM 3.0|5/5mm Plain|NECT|NCCT Head|UNENHANCED LIVER|CONTRAST: NONE|IV CONTRAST NOT GIVEN
WITHOUT ORAL OR IV CONTRAST|WITH NO CONTRAST|W/O IV, W ORAL CONTRAST|ORAL CONTRAST ONLY, NO IV CON|W\\O CONTRAST
s/ contraste|S/CONTRASTE|s/contr|s/ CIV|Abdomen S/C 5.0|CRANEO S/C|sin CIV|sem CIV|sin contraste EV
sin medio de contraste
sem meio de contraste|senza mezzo di contrasto|pré contraste|PRÉ-CONTRASTE|pre contraste|PRE KM|pre-contrast
BEFORE CONTRAST
prior to contrast|before injection|avant injection|avant contraste|antes do contraste|vor KM|vor Kontrast|vor Injektion
CRANIO SEM CONTRASTE|ohne KM|ohne i.v. KM|kein KM|o. KM|nativ|nativo|sans inj|non contrasté|-C|CT ABD -C|Chest -C 5mm
ABD (-C)
"""
CONTRAST = """
POST|AX POST|POST CONTRAST|CT WITH CONTRAST|W CON|W/CON|W/ CONTRAST|W IV CONTRAST|CT ABDOMEN W/ IV CON|CHEST C+|C+ 5MM
CONTRAST|ENHANCED|ABD MIT KM|FDG_TK_KM|NEPHROGRAPHIC|ORAL AND IV CONTRAST
con contraste|CECT ABDOMEN|NO ORAL, IV CONTRAST
+C|ABD +C|Chest +C 5.0|C/C|ABD C/C|c/ contraste|C/CONTRASTE|c/ CIV|con CIV|com CIV|com contraste|pós contraste
después de contraste
con MDC|dopo mdc|con contrasto|nach KM|m. KM|mit Kontrastmittel|nach Injektion|med kontrast|après injection
tras contraste
"""
ARTERIAL = "LATE ART|Late arterial|EARLY ART 1.0|ART 35S|ABD_ART35s|CTA CHEST|CT ANGIO ABD|ANGIO|HEPATIC ARTERIAL W CON"
PORTAL_VENOUS = """
PORTAL VENOUS|PORTO-VENOUS|PV PHASE|Abdomen venös 3.0|VENOUS 70S|Abd ven 5.0|PORTAL 2.5|POST VENOUS|p.o. KM venös
"""
DELAYED = "DELAYED 5 MIN|DELAY|LATE|EXCRETORY|10 MIN DELAYS|equilibrium W CON"
SEVERAL = """
W WO CONTRAST|W/WO CONTRAST|W/W/O CONTRAST|W/ & W/O IV CONTRAST|W & W/O CONTRAST|WITH AND WITHOUT CONTRAST|WO AND W
CT ABD WITH & WITHOUT IV CONTRAST|W OR W AND WO IV CONTRAST|WITHOUT AND WITH|PRE AND POST CONTRAST|PRE/POST|C-/C+
CT +/- CONTRAST|NON-CONTRAST AND CONTRAST|arterial/venous|native and venous|CTA W/O|con y sin contraste|ohne und mit KM
TRIPHASIC LIVER|WWO|C+/-|-/+C|+/-C|CT+/-CONTRAST|C-/+|C+-|C-+|±C|± contrast|C+ C-|-C/+C|+C -C|S/C e C/C|S/C + C/C
s/ e c/ contraste|c/ e s/ contraste|s/ c/ contraste|c/s contraste|s/c contraste|sem e com contraste|com ou sem contraste
con y sin CIV|sin/con contraste|con/sin contraste|pré e pós contraste|pre y post contraste|antes e depois do contraste
avant et après injection|vor und nach KM|before and after contrast|ohne/mit KM|nativ und KM|mit oder ohne KM
"""
NOTHING = """
Abdomen|CT Body 3.0|Routine Brain|STD BRAIN 5MM|C-SPINE|C-5|POST OP DAY 1|PRE-OP PLANNING|POST BIOPSY|POSTERIOR FOSSA
PREMONITORING|Pre Monitoring|ORAL CONTRAST|NO ORAL CONTRAST|PO CONTRAST|WITHOUT PO CONTRAST|W/O MAR|NO ARMS|LEVEL IV
A+C|HEAD-C|Hep C|3D-C|A-C joint|C - SPINE|HEAD +C-SPINE|HEAD +C SPINE|HEAD -C/T SPINE|-C T L SPINE|HEAD +C5|C/C SPINE
S/C JOINT
S/CLAVICLE|S/P TRAUMA|c/o pain|Hüfte sin|before OP|vor OP|avant biopsie|ABD 5cm|Abdomen p.o. KM|ABD PO KM|orales KM
alternative|translate|smart score|LUNG WINDOW|VOLUME
"""


def listed(text: str) -> list[str]:
    return [one for line in text.strip().splitlines() for one in line.strip().split("|") if one]


@pytest.mark.parametrize(
    ("phase", "text"),
    [
        *((Phase.NATIVE, text) for text in listed(NATIVE)),
        *((Phase.CONTRAST, text) for text in listed(CONTRAST)),
        *((Phase.ARTERIAL, text) for text in listed(ARTERIAL)),
        *((Phase.PORTAL_VENOUS, text) for text in listed(PORTAL_VENOUS)),
        *((Phase.DELAYED, text) for text in listed(DELAYED)),
    ],
)
def test_a_description_names_one_phase(phase: Phase, text: str) -> None:
    for written in (text, text.lower()):
        found = named_phase(written, WORDS)
        assert (found.phase, found.several) == (phase, False), found
        assert found.words


@pytest.mark.parametrize("text", listed(SEVERAL))
def test_a_description_names_several(text: str) -> None:
    found = named_phase(text, WORDS)
    assert (found.phase, found.several) == (None, True), found


@pytest.mark.parametrize("text", listed(NOTHING))
def test_a_description_says_nothing_of_it(text: str) -> None:
    assert named_phase(text, WORDS).phase is None
    assert not named_phase(text, WORDS).several


@pytest.mark.parametrize(
    ("agent", "route", "told"),
    [
        *((agent, "", Injected.YES) for agent in (
            "ISOVUE300/100", "Iomeron 400", "Omnipaque non-ionic 350 0.5 ml", "APPLIED", "CONTRAST", "YES", "350",
            "11 ml Omniscan", "ORAL & IV", "IV CONTRAST", "WATER PO, ISOVUE 370 IV", "ULTRAVIST + IV",
            "NO ORAL, IV OMNI", "ORAL BEFORE IV CONTRAST", "GASTROGRAFIN PRIOR TO IV", "CIV", "+C",
        )),
        *((agent, "", Injected.NO) for agent in (
            "NONE", "none given", "No", "Oral Contrast", "ORAL", "GASTROGRAFIN", "VOLUMEN PO", "WATER", "ORAL & NO IV",
            "ORAL ONLY", "50 ml Gastrografin", "BARIUM 2%", "READI-CAT 2", "NO IV", "NO IV CONTRAST", "W/O", "W/O IV",
            "WATER ONLY, NO IV CONTRAST", "UNENHANCED", "NON-CONTRAST", "RECTAL CONTRAST", "IV CONTRAST: NONE", "N/A",
            "S/C", "SEM CONTRASTE", "s/ CIV", "sin CIV", "-C", "kein KM",
        )),
        *((agent, "", Injected.UNCLEAR) for agent in ("OMNIPAQUE 350, ORAL", "GASTROGRAFIN + ULTRAVIST", "Iohexol PO")),
        *((agent, "", Injected.NOT_SAID) for agent in ("", "-", "  ")),
        ("OMNIPAQUE 350", "ORAL", Injected.NO),
        ("OMNIPAQUE 350", "IV", Injected.YES),
        ("OMNIPAQUE 350", "ORAL AND IV", Injected.YES),
        ("Iohexol PO", "Intravenous route", Injected.YES),
        ("Iohexol PO", "Oral", Injected.NO),
        ("GASTROGRAFIN", "IV", Injected.UNCLEAR),
        ("NONE", "IV", Injected.NO),
        ("", "IV", Injected.NOT_SAID),
        ("", "ORAL", Injected.NO),
    ],
)  # fmt: skip
def test_what_was_drunk_was_not_injected(agent: str, route: str, told: Injected) -> None:
    assert injected(agent, route, WORDS) is told
    assert injected(agent.lower(), route.lower(), WORDS) is told
