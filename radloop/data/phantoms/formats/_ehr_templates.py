"""Some of EHRXQA's question templates, at least one of each scope, with their two kinds of SQL."""

from __future__ import annotations

from dataclasses import dataclass

_PARTS = {
    "<admissions>": "select admissions.hadm_id from admissions where admissions.subject_id = {patient_id}",
    "<studies>": "select tb_cxr.study_id from tb_cxr where tb_cxr.subject_id = {patient_id}",
    "<chosen>": "select tb_cxr.study_id from tb_cxr where tb_cxr.study_id in ( select distinct "
    "tb_cxr.study_id from tb_cxr where tb_cxr.subject_id = {patient_id}",
    "<own>": "select study_id from tb_cxr where subject_id = :patient_id",
    "<first>": "order by tb_cxr.studydatetime asc limit 1",
    "<last>": "order by tb_cxr.studydatetime desc limit 1",
    "<is there>": 'func_vqa("is there {attribute}?", t1.study_id) = true',
    "<shown>": "select study_id from tb_cxr_plus where attribute = :attribute and relation = 1",
}


@dataclass(frozen=True)
class Template:
    """One published template.

    Attributes:
        tag: `q_tag`, word for word.
        query: NeuralSQL as questions are published with it, values in braces; images are asked by `func_vqa`.
        gold: SQL that gives the answer, values as :name.
        time: `t_tag`: two periods, a distance, and two choices of one event.
        period: How the question words the first period, its value in braces.
        age: Tag and text of `o_tag`'s age group, "" for none.
    """

    tag: str
    query: str
    gold: str
    time: tuple[str, str, str, str, str] = ("", "", "", "", "")
    age: str = ""
    period: str = ""


def _template(
    tag: str,
    query: str,
    gold: str,
    *,
    exact: tuple[str, str] = ("", ""),
    period: tuple[str, str] = ("", ""),
    age: str = "",
) -> Template:
    for short, part in _PARTS.items():
        query, gold = query.replace(short, part), gold.replace(short, part)
    return Template(tag, query, gold, (period[0], "", "", *exact), age, period[1])


ROUTE = _template(
    "what is the intake method of {drug_name}?",
    "select distinct prescriptions.route from prescriptions where prescriptions.drug = '{drug_name}'",
    "select distinct route from prescriptions where drug = :drug_name",
)
COST = _template(
    "what is the cost of a drug named {drug_name}?",
    "select distinct cost.cost from cost where cost.event_type = 'prescriptions' and cost.event_id in ( "
    "select prescriptions.row_id from prescriptions where prescriptions.drug = '{drug_name}' )",
    "select distinct cost from cost where event_type = 'prescriptions' and event_id in "
    "(select row_id from prescriptions where drug = :drug_name)",
)
LAB = _template(
    "what was the [time_filter_exact1] measured value of a {lab_name} lab test of patient {patient_id} "
    "[time_filter_global1]?",
    "select labevents.valuenum from labevents where labevents.hadm_id in ( <admissions> ) "
    "and labevents.itemid in ( select d_labitems.itemid from d_labitems "
    "where d_labitems.label = '{lab_name}' ) order by labevents.charttime desc limit 1",
    "select valuenum from labevents join d_labitems using (itemid) where subject_id = :patient_id "
    "and label = :lab_name order by charttime desc limit 1",
    exact=("exact-last", ""),
)
PRESCRIBED = _template(
    "has_verb patient {patient_id} been prescribed {drug_name} [time_filter_global1]?",
    "select count(*)>0 from prescriptions where prescriptions.hadm_id in ( <admissions> ) "
    "and prescriptions.drug = '{drug_name}'",
    "select count(*) > 0 from prescriptions where subject_id = :patient_id and drug = :drug_name",
)
DIAGNOSED = _template(
    "has_verb patient {patient_id} been diagnosed with {diagnosis_name} [time_filter_global1]?",
    "select count(*)>0 from diagnoses_icd where diagnoses_icd.icd_code = ( select d_icd_diagnoses.icd_code "
    "from d_icd_diagnoses where d_icd_diagnoses.long_title = '{diagnosis_name}' ) "
    "and diagnoses_icd.hadm_id in ( <admissions> )",
    "select count(*) > 0 from diagnoses_icd join d_icd_diagnoses using (icd_code) "
    "where subject_id = :patient_id and long_title = :diagnosis_name",
)
COUNT_PRESCRIBED = _template(
    "count the number of patients who were prescribed {drug_name} [time_filter_global1].",
    "select count( distinct admissions.subject_id ) from admissions where admissions.hadm_id in ( select "
    "prescriptions.hadm_id from prescriptions where prescriptions.drug = '{drug_name}' )",
    "select count(distinct subject_id) from prescriptions where drug = :drug_name",
)
IN_PLACE = _template(
    "given the study {study_id}, is there ${attribute} in the ${object}?",
    'select func_vqa("is there {attribute} in the {object}?", t1.study_id) from ( '
    "select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = {study_id} ) as t1",
    "select count(*) > 0 from tb_cxr_plus where study_id = :study_id and attribute = :attribute "
    "and object = :object and relation = 1",
)
LIST_IN_PLACE = _template(
    "given the study {study_id}, list all ${category} in the ${object}.",
    'select func_vqa("list all {category} in the {object}.", t1.study_id) from ( '
    "select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = {study_id} ) as t1",
    "select distinct attribute from tb_cxr_plus where study_id = :study_id and category = :category "
    "and object = :object and relation = 1",
)
COMPARED = _template(
    "given the {study_id1} study, is ${attribute} ${comparison} compared to the {study_id2} study?",
    'select ( select func_vqa("is there {attribute}?", t1.study_id) from ( '
    "select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = {study_id1} ) as t1 ) and ( "
    'select func_vqa("is there {attribute}?", t2.study_id) '
    "from ( select tb_cxr.study_id from tb_cxr where tb_cxr.study_id = {study_id2} ) as t2 )",
    "select :study_id1 in (<shown>) and :study_id2 in (<shown>)",
)
_GIVEN = "given the [time_filter_exact1] study of patient {patient_id} [time_filter_global1], "
LAST_SHOWS = _template(
    _GIVEN + "is there ${attribute}?",
    'select func_vqa("is there {attribute}?", t1.study_id) from ( <chosen> '
    "and strftime('%y',tb_cxr.studydatetime) = '{year}' <last> ) ) as t1",
    "select count(*) > 0 from (<own> and strftime('%Y', studydatetime) = :year <last>) "
    "where study_id in (<shown>)",
    exact=("exact-last", ""),
    period=("abs-year-in", "in {year}"),
)
LAST_UNTIL_SHOWS = _template(
    _GIVEN + "is there ${attribute} in the ${object}?",
    'select func_vqa("is there {attribute} in the {object}?", t1.study_id) from ( <chosen> '
    "and strftime('%y-%m-%d',tb_cxr.studydatetime) <= '{day}' <last> ) ) as t1",
    "select count(*) > 0 from (<own> and date(studydatetime) <= :day <last>) "
    "join tb_cxr_plus using (study_id) where attribute = :attribute and object = :object and relation = 1",
    exact=("exact-last", ""),
    period=("abs-day-until", "until {day}"),
)
COMPARED_TO_PREVIOUS = _template(
    _GIVEN + "is ${attribute} ${comparison} compared to the previous study?",
    'select ( select func_vqa("is there {attribute}?", t1.study_id) from ( <chosen> <last> ) ) as t1 ) '
    'and ( select func_vqa("is there {attribute}?", t2.study_id) from ( <studies> and tb_cxr.studydatetime < '
    "( select distinct tb_cxr.studydatetime from tb_cxr where tb_cxr.study_id in ( select distinct "
    "tb_cxr.study_id from tb_cxr where tb_cxr.subject_id = {patient_id} <last> ) ) <last> ) as t2 )",
    "select count(*) = 2 from (<own> order by studydatetime desc limit 2) where study_id in (<shown>)",
    exact=("exact-last", ""),
)
FIRST_AND_LAST_COMPARED = _template(
    _GIVEN + "is ${attribute} ${comparison} compared to the [time_filter_exact2] study of patient "
    "{patient_id} [time_filter_global2]?",
    'select ( select func_vqa("is there {attribute}?", t1.study_id) from ( <chosen> <last> ) ) as t1 ) '
    'and ( select func_vqa("is there {attribute}?", t2.study_id) from ( <chosen> <first> ) ) as t2 )',
    "select (select * from (<own> <last>)) in (<shown>) and (select * from (<own> <first>)) in (<shown>)",
    exact=("exact-last", "exact-first"),
)
EVER_SHOWN = _template(
    "has {patient_id} had any chest x-ray study indicating ${attribute} [time_filter_global1]?",
    "select count(*)>0 from ( <studies> ) as t1 where <is there>",
    "select count(*) > 0 from tb_cxr where subject_id = :patient_id and study_id in (<shown>)",
)
TIMES_SHOWN = _template(
    "count the number of times that patient {patient_id} had chest x-ray studies indicating ${attribute} "
    "[time_filter_global1].",
    "select count( distinct t1.study_id ) from ( <studies> ) as t1 where <is there>",
    "select count(distinct study_id) from tb_cxr where subject_id = :patient_id and study_id in (<shown>)",
)
COUNT_SHOWN = _template(
    "count the number of patients who had any chest x-ray study indicating ${attribute} "
    "[time_filter_global1].",
    "select count( distinct t1.subject_id ) from ( select * from tb_cxr ) as t1 where <is there>",
    "select count(distinct subject_id) from tb_cxr where study_id in (<shown>)",
)
LIST_SHOWN = _template(
    "list the ids of patients who had any chest x-ray study indicating ${attribute} [time_filter_global1].",
    "select distinct t1.subject_id from ( select * from tb_cxr ) as t1 where <is there>",
    "select distinct subject_id from tb_cxr where study_id in (<shown>)",
)
DIAGNOSED_AND_SHOWN = _template(
    "has_verb patient {patient_id} been diagnosed with {diagnosis_name} [time_filter_global1] and also had a "
    "chest x-ray study indicating ${attribute} within the same period?",
    f"select ( {DIAGNOSED.query} ) and ( {EVER_SHOWN.query} )",
    f"select ({DIAGNOSED.gold}) and ({EVER_SHOWN.gold})",
)
PRESCRIBED_AND_SHOWN = _template(
    "has_verb patient {patient_id} been prescribed with {drug_name} [time_filter_global1] and also had a "
    "chest x-ray study indicating ${attribute} within the same period?",
    f"select ( {PRESCRIBED.query} ) and ( {EVER_SHOWN.query} )",
    f"select ({PRESCRIBED.gold}) and ({EVER_SHOWN.gold})",
)
COUNT_AGED = _template(
    "count the number of patients aged [age_group] who had a chest x-ray study during hospital visit "
    "indicating ${attribute} [time_filter_global1].",
    "select count( distinct t1.subject_id ) from ( select * from tb_cxr where tb_cxr.hadm_id in ( select "
    "admissions.hadm_id from admissions where admissions.age between 60 and 69 ) ) as t1 where <is there>",
    "select count(distinct subject_id) from tb_cxr where hadm_id in "
    "(select hadm_id from admissions where age between 60 and 69) and study_id in (<shown>)",
    age="60s",
)
